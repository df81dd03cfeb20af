from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lethe import tables
from lethe.analysis.sequence_measures import (
    compare_runs,
    find_heldout,
    measure_lines,
    step_lines,
    task_lines,
)
from lethe.analysis.sequence_sums import additivity_lines, choice_lines, prediction_lines
from lethe.config.sequence_settings import Sequences
from lethe.data.examples import read_upstream
from lethe.jobs.running import run
from lethe.matrix.forgetting_matrix import read_matrix
from lethe.matrix.rows import read_row
from lethe.matrix.sequence_rows import read_multitask, read_sequences


def gather_sequences(
    step_files: list[Path],
    multitask_files: list[Path],
    row_files: list[Path],
    matrix: Path,
    upstream: Path,
    settings: Sequences,
    noise_floor: float | None,
    seed: int,
    outputs: Mapping[str, Path],
) -> None:
    """Writes the tables on a model's sequences: measures, sums of single rows, and predictions."""
    single_rows = {path.stem: read_row(path) for path in row_files}
    single = {task: row.forgetting.astype(np.float64) for task, row in single_rows.items()}
    sequences = read_sequences(step_files, settings, single_rows)
    heldout = find_heldout(read_upstream(upstream), sequences, settings.reference_run, noise_floor)
    z = read_matrix(matrix)
    multitask_orders = {order: settings.multitask_order(order) for order in settings.orders}
    measures = measure_lines(
        sequences,
        read_multitask(multitask_files),
        heldout,
        orders=multitask_orders,
    )
    tables.write_csv(outputs["steps"], step_lines(sequences, heldout, single))
    tables.write_csv(outputs["tasks"], task_lines(sequences))
    tables.write_csv(outputs["measures"], measures)
    compared = compare_runs(measures, settings.reference_run, multitask_orders)
    tables.write_csv(outputs["comparison"], compared)
    tables.write_csv(outputs["additivity"], additivity_lines(sequences, single, seed))
    tables.write_csv(
        outputs["prediction"],
        prediction_lines(
            sequences,
            dict(zip(z.tasks, z.values.astype(np.float64), strict=True)),
            probes=min(settings.probes, z.values.shape[1] - 1),
            seed=seed,
        ),
    )
    tables.write_csv(outputs["choice"], choice_lines(sequences, single))


if __name__ == "__main__":
    run(
        gather_sequences,
        snakemake.log[0],
        step_files=[Path(path) for path in snakemake.input.steps],
        multitask_files=[Path(path) for path in snakemake.input.multitask],
        row_files=[Path(path) for path in snakemake.input.rows],
        matrix=Path(snakemake.input.matrix),
        upstream=Path(snakemake.input.upstream),
        settings=Sequences(**snakemake.params.sequences),
        noise_floor=snakemake.params.noise_floor,
        seed=snakemake.params.seed,
        outputs={name: Path(path) for name, path in snakemake.output.items()},
    )
