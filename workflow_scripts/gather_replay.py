from pathlib import Path

from lethe import tables
from lethe.data.examples import read_upstream
from lethe.jobs.running import run
from lethe.matrix.gathering import read_replay_runs
from lethe.replay.comparison import compare
from lethe.replay.contrast_tests import compare_planned
from lethe.replay.frontier import compare_at_equal_loss
from lethe.replay.planned_contrasts import Contrast
from lethe.replay.runs import gather_runs


def gather_replay(
    run_files: list[Path],
    upstream: Path,
    contrasts: list[Contrast],
    noise_floor: float | None,
    runs: Path,
    comparison: Path,
    planned: Path | None,
    frontiers: dict[str, list[str]],
    compared: dict[str, list[str]],
    at_equal_loss: Path | None,
    mixed_machines: bool,
) -> None:
    """Writes one line per replay run, compares the runs, and tests the planned comparisons."""
    rows = read_replay_runs(run_files, mixed_machines)
    gathered = gather_runs(rows, read_upstream(upstream), noise_floor)
    tables.write_csv(runs, gathered.records)
    tables.write_csv(comparison, compare(gathered.records, gathered.forgetting))
    if planned is not None:
        tables.write_csv(planned, compare_planned(gathered.records, contrasts, gathered.forgetting))
    if at_equal_loss is not None:
        tables.write_csv(
            at_equal_loss, compare_at_equal_loss(gathered.records, frontiers, compared)
        )


if __name__ == "__main__":
    run(
        gather_replay,
        snakemake.log[0],
        run_files=[Path(path) for path in snakemake.input.runs],
        upstream=Path(snakemake.input.upstream),
        contrasts=[Contrast(**contrast) for contrast in snakemake.params.contrasts],
        noise_floor=snakemake.params.noise_floor,
        runs=Path(snakemake.output.runs),
        comparison=Path(snakemake.output.comparison),
        planned=Path(snakemake.output.contrasts) if snakemake.params.contrasts else None,
        frontiers=snakemake.params.frontiers,
        compared=snakemake.params.compared,
        at_equal_loss=Path(snakemake.output.frontier) if snakemake.params.frontiers else None,
        mixed_machines=snakemake.params.mixed_machines,
    )
