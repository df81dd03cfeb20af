from pathlib import Path

from lethe.data.examples import write_upstream
from lethe.data.own_texts import read_own_texts
from lethe.jobs.running import run
from lethe.matrix import forgetting_matrix


def import_texts(texts: Path, matrix: Path, upstream: Path) -> None:
    """Imports the texts and domains of the examples of the user's own matrix."""
    example_ids = forgetting_matrix.read_matrix(matrix).example_ids
    write_upstream(upstream, read_own_texts(texts, example_ids))


if __name__ == "__main__":
    run(
        import_texts,
        snakemake.log[0],
        texts=Path(snakemake.input.texts),
        matrix=Path(snakemake.input.matrix),
        upstream=Path(snakemake.output.upstream),
    )
