import sys
from pathlib import Path

from lethe import tables
from lethe.analysis import streamed_rank
from lethe.jobs.running import run


def rank_curve(z: Path, curve: Path) -> None:
    """R2 of Z by rank, with the comparators that have no factors; F1 by rank if Z is binary."""
    found = streamed_rank.rank_curve(z)
    print(f"{found.dropped_columns} columns with a NaN were dropped", file=sys.stderr)
    tables.write_csv(curve, found.records(streamed_rank.f1_by_rank(z)))


if __name__ == "__main__":
    paths = {"z": Path(snakemake.input.matrix), "curve": Path(snakemake.output.curve)}
    run(rank_curve, snakemake.log[0], **paths)
