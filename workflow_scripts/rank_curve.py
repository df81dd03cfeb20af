import sys
from pathlib import Path

from lethe import tables
from lethe.analysis import streamed_rank
from lethe.jobs.running import run


def rank_curve(z: Path, curve: Path) -> None:
    """Computes R2 of Z by rank, and of comparators without factors; F1 by rank if Z is binary."""
    computed = streamed_rank.streamed_rank_curve(z)
    print(f"{computed.dropped_columns} columns with a NaN were dropped", file=sys.stderr)
    if computed.dropped_tasks:
        names = ", ".join(computed.dropped_tasks)
        print(
            f"no example was measured for every task, so these tasks were left out: {names}",
            file=sys.stderr,
        )
    tables.write_csv(curve, computed.records(streamed_rank.streamed_f1_by_rank(z)))


if __name__ == "__main__":
    run(
        rank_curve,
        snakemake.log[0],
        z=Path(snakemake.input.matrix),
        curve=Path(snakemake.output.curve),
    )
