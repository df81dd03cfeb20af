from collections import Counter
from pathlib import Path

from lethe import tables
from lethe.config.task_table import tasks_from_pairs
from lethe.cost.plan import make_plan
from lethe.data.examples import read_upstream
from lethe.files import atomic_write, read_json
from lethe.jobs.running import run


def plan(
    upstream: Path, calibrations: dict, models: dict, outputs: dict, sizes: dict, prices: dict
) -> None:
    """Multiplies the rates of a few steps by the number of steps and jobs."""
    splits = Counter(example.split for example in read_upstream(upstream))
    measured = {name: read_json(path) for name, path in calibrations.items()}
    estimate = make_plan(
        measured,
        models,
        tasks=tasks_from_pairs(sizes["tasks"]),
        splits=splits,
        sizes=sizes,
        prices=prices,
    )
    tables.write_csv(outputs["plan"], estimate.lines)
    tables.write_csv(outputs["ways"], estimate.ways)
    with atomic_write(outputs["text"]) as part:
        part.write_text(estimate.text, "utf-8")


if __name__ == "__main__":
    params, given = snakemake.params, snakemake.input
    files = {Path(path).parent.name: Path(path) for path in given.calibrations}
    settings = {"models": params.models, "sizes": params.sizes, "prices": params.prices}
    settings |= {"upstream": Path(given.upstream), "calibrations": files}
    outputs = {name: Path(path) for name, path in snakemake.output.items()}
    run(plan, snakemake.log[0], outputs=outputs, **settings)
