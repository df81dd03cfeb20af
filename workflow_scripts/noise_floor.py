from pathlib import Path

import numpy as np

from lethe.analysis.noise import noise_floor as floor
from lethe.files import write_json
from lethe.jobs.running import run
from lethe.matrix import forgetting_matrix
from lethe.measure import repeats


def noise_floor(
    z: Path,
    row_files: dict[str, Path],
    repeat_files: list[Path],
    noise: Path,
    columns: Path,
    seed: int,
) -> None:
    """Estimates the noise in Z from repeats of a few rows, and the rank above it."""
    trainings, measurements, ids = repeats.gather(row_files, repeat_files)
    report, *deviations = floor(
        forgetting_matrix.read_matrix(z).values, trainings, measurements, seed
    )
    write_json(noise, report)
    forgetting_matrix.write_matrix(
        columns, forgetting_matrix.Matrix(np.stack(deviations), ["training", "engine"], ids)
    )


if __name__ == "__main__":
    run(
        noise_floor,
        snakemake.log[0],
        z=Path(snakemake.input.matrix),
        row_files=dict(zip(snakemake.params.tasks, map(Path, snakemake.input.rows), strict=True)),
        repeat_files=[Path(path) for path in snakemake.input.repeats],
        noise=Path(snakemake.output.noise),
        columns=Path(snakemake.output.columns),
        seed=snakemake.params.seed,
    )
