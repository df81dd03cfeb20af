import sys
from pathlib import Path

from lethe.files import write_json
from lethe.jobs.running import run
from lethe.matrix import forgetting_matrix, own_matrix
from lethe.matrix.sanity import sanity, sentences


def import_matrix(
    path: Path,
    meta: Path | None,
    examples: str | None,
    z: Path,
    report: Path,
    tasks: list[str],
    layout: str | None,
) -> None:
    """Imports a matrix of the user's own as Z, and reports whether it looks like one."""
    if meta is not None:
        matrix = own_matrix.read_named(path=path, meta=meta, tasks=tasks)
    else:
        matrix = own_matrix.read(path=path, tasks=tasks, layout=layout, examples=examples)
    facts = sanity(matrix)
    print(sentences(facts), file=sys.stderr)
    write_json(report, facts)
    forgetting_matrix.write(z, own_matrix.masked(matrix))


if __name__ == "__main__":
    run(
        import_matrix,
        snakemake.log[0],
        path=Path(snakemake.input.own),
        meta=Path(snakemake.input.meta) if snakemake.input.meta else None,
        examples=snakemake.input.examples or None,
        z=Path(snakemake.output.matrix),
        report=Path(snakemake.output.sanity),
        tasks=snakemake.params.tasks,
        layout=snakemake.params.layout,
    )
