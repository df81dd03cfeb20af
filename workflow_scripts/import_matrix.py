from pathlib import Path

from lethe import matrix
from lethe.jobs import run


def import_matrix(own: Path, z: Path, tasks: list[str]) -> None:
    """Takes in a Z of the user's own."""
    matrix.write(z, matrix.read_own(own, tasks))


if __name__ == "__main__":
    paths = {"own": Path(snakemake.input.own), "z": Path(snakemake.output.matrix)}
    run(import_matrix, snakemake.log[0], **paths, tasks=snakemake.params.tasks)
