from collections import Counter
from pathlib import Path

from lethe import tables
from lethe.config.task_table import tasks_from_pairs
from lethe.cost.plan import make_plan
from lethe.data.examples import read_upstream
from lethe.files import read_json, write_text
from lethe.jobs.running import run


def plan(
    upstream: Path,
    calibrations: list[str],
    table: Path,
    ways: Path,
    text: Path,
    models: dict,
    sizes: dict,
    prices: dict,
) -> None:
    """Multiplies the rates of a few steps by the number of steps and jobs."""
    estimate = make_plan(
        dict(zip(models, map(read_json, calibrations), strict=True)),
        models,
        tasks=tasks_from_pairs(sizes["tasks"]),
        splits=Counter(example.split for example in read_upstream(upstream)),
        sizes=sizes,
        prices=prices,
    )
    tables.write_csv(table, estimate.lines)
    tables.write_csv(ways, estimate.ways)
    write_text(text, estimate.text)


if __name__ == "__main__":
    run(
        plan,
        snakemake.log[0],
        upstream=Path(snakemake.input.upstream),
        calibrations=list(snakemake.input.calibrations),
        table=Path(snakemake.output.plan),
        ways=Path(snakemake.output.ways),
        text=Path(snakemake.output.text),
        models=snakemake.params.models,
        sizes=snakemake.params.sizes,
        prices=snakemake.params.prices,
    )
