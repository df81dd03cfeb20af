from pathlib import Path

from lethe.data.examples import write_upstream
from lethe.data.own_texts import read_own_texts
from lethe.jobs.running import run
from lethe.matrix.forgetting_matrix import read_example_ids


def import_texts(texts: Path, matrices: list[Path], upstream: Path) -> None:
    """Imports the texts and domains of the examples of the user's own matrices."""
    example_ids: dict[str, None] = {}
    for matrix in matrices:
        example_ids |= dict.fromkeys(read_example_ids(matrix))
    write_upstream(upstream, read_own_texts(texts, list(example_ids)))


if __name__ == "__main__":
    run(
        import_texts,
        snakemake.log[0],
        texts=Path(snakemake.input.texts),
        matrices=[Path(path) for path in snakemake.input.matrices],
        upstream=Path(snakemake.output.upstream),
    )
