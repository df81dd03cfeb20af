from collections.abc import Mapping
from pathlib import Path

from lethe.files import whole
from lethe.jobs.running import run
from lethe.report import findings, report_page


def write_report(
    inputs: Mapping, page: Path, models: list[str], tasks: dict, settings: dict
) -> None:
    """Writes the experiment's page: one file, nothing else needed to look at it."""
    found = findings.read(inputs, models, tasks)
    figures = {Path(path).stem: Path(path).read_bytes() for path in inputs["figures"]}
    with whole(page) as part:
        part.write_text(report_page.page(found, figures, settings), "utf-8")


if __name__ == "__main__":
    params = snakemake.params
    choice = {"models": params.models, "tasks": params.tasks, "settings": params.settings}
    files = {"inputs": snakemake.input, "page": Path(snakemake.output.page)}
    run(write_report, snakemake.log[0], **files, **choice)
