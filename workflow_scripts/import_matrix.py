import sys
from pathlib import Path

from lethe.files import write_json
from lethe.jobs.running import run
from lethe.matrix import forgetting_matrix, own_matrix
from lethe.matrix.sanity import sanity, sentences


def import_matrix(z: Path, report: Path, **own) -> None:
    """Takes in a Z of the user's own and says whether it looks like one."""
    found = own_matrix.read_named(**own) if "meta" in own else own_matrix.read(**own)
    seen = sanity(found)
    print(sentences(seen), file=sys.stderr)
    write_json(report, seen)
    forgetting_matrix.write(z, own_matrix.masked(found))


if __name__ == "__main__":
    given = snakemake.input
    own = {"path": Path(given.own), "tasks": snakemake.params.tasks}
    if given.meta:
        own["meta"] = Path(given.meta)
    else:
        own |= {"examples": given.examples or None, "layout": snakemake.params.layout}
    paths = {"z": Path(snakemake.output.matrix), "report": Path(snakemake.output.sanity)}
    run(import_matrix, snakemake.log[0], **paths, **own)
