from pathlib import Path

from lethe import tables
from lethe.jobs.running import run
from lethe.matrix import rows
from lethe.replay.comparison import compare


def gather_replay(run_files: list[Path], runs: Path, comparison: Path) -> None:
    """One line a replay run, and the strategies compared over tasks."""
    lines = [runs.replay_line(rows.read(path)) for path in run_files]
    tables.write_csv(runs, lines)
    tables.write_csv(comparison, compare(lines))


if __name__ == "__main__":
    paths = {
        "runs": Path(snakemake.output.runs),
        "comparison": Path(snakemake.output.comparison),
    }
    run_files = [Path(path) for path in snakemake.input.runs]
    run(gather_replay, snakemake.log[0], run_files=run_files, **paths)
