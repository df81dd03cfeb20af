from pathlib import Path

import numpy as np

from lethe.analysis.noise import noise_floor as floor
from lethe.files import write_json
from lethe.jobs.running import run
from lethe.matrix import forgetting_matrix
from lethe.measure import repeats


def noise_floor(
    z: Path, measured: dict[str, Path], repeated: list[Path], noise: Path, columns: Path, seed: int
) -> None:
    """Sizes of the noise in Z from repeats of a few rows, and the rank above it."""
    trainings, measurements, ids = repeats.gather(measured, repeated)
    report, *deviations = floor(forgetting_matrix.read(z).values, trainings, measurements, seed)
    write_json(noise, report)
    forgetting_matrix.write(
        columns, forgetting_matrix.Matrix(np.stack(deviations), ["training", "engine"], ids)
    )


if __name__ == "__main__":
    given, params = snakemake.input, snakemake.params
    measured = dict(zip(params.tasks, map(Path, given.rows), strict=True))
    files = {"z": Path(given.matrix), "repeated": [Path(path) for path in given.repeats]}
    made = {name: Path(snakemake.output[name]) for name in ("noise", "columns")}
    run(noise_floor, snakemake.log[0], measured=measured, seed=params.seed, **files, **made)
