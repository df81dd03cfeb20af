import sys
from pathlib import Path

from lethe.files import write_json
from lethe.jobs.running import run
from lethe.matrix import forgetting_matrix, own_matrix
from lethe.matrix.sanity import check_sanity, describe_sanity


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
        matrix = own_matrix.read_named_matrix(path=path, meta=meta, tasks=tasks)
    else:
        matrix = own_matrix.read_own_matrix(
            path=path, tasks=tasks, layout=layout, examples=examples
        )
    facts = check_sanity(matrix)
    print(describe_sanity(facts), file=sys.stderr)
    write_json(report, facts)
    forgetting_matrix.write_matrix(z, own_matrix.infinite_to_nan(matrix))


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
