from collections import Counter
from pathlib import Path

from lethe import tables
from lethe.cost import plan as planning
from lethe.data.examples import read_upstream
from lethe.files import read_json, whole
from lethe.jobs.running import run


def plan(upstream: Path, calibrations: dict, models: dict, outputs: dict, **experiment) -> None:
    """Multiplies what a few steps took by how many there will be."""
    splits = Counter(example.split for example in read_upstream(upstream))
    measured = {name: read_json(path) for name, path in calibrations.items()}
    found = planning.plan(measured, models, splits, **experiment)
    tables.write_csv(outputs["plan"], found.lines)
    tables.write_csv(outputs["ways"], found.ways)
    with whole(outputs["text"]) as part:
        part.write_text(found.text, "utf-8")


if __name__ == "__main__":
    params, given = snakemake.params, snakemake.input
    files = {Path(path).parent.name: Path(path) for path in given.calibrations}
    settings = {"models": params.models, "sizes": params.sizes, "prices": params.prices}
    settings |= {"upstream": Path(given.upstream), "calibrations": files}
    outputs = {name: Path(path) for name, path in snakemake.output.items()}
    run(plan, snakemake.log[0], outputs=outputs, **settings)
