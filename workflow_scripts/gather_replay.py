from pathlib import Path

from lethe import tables
from lethe.jobs.running import run
from lethe.matrix import rows
from lethe.replay.comparison import compare
from lethe.replay.runs import replay_line


def gather_replay(run_files: list[Path], runs: Path, comparison: Path) -> None:
    """Writes one line per replay run, and compares the strategies over tasks."""
    lines = [replay_line(rows.read_row(path)) for path in run_files]
    tables.write_csv(runs, lines)
    tables.write_csv(comparison, compare(lines))


if __name__ == "__main__":
    run(
        gather_replay,
        snakemake.log[0],
        run_files=[Path(path) for path in snakemake.input.runs],
        runs=Path(snakemake.output.runs),
        comparison=Path(snakemake.output.comparison),
    )
