from collections.abc import Mapping
from pathlib import Path

from lethe.config.task_table import tasks_from_pairs
from lethe.files import atomic_write
from lethe.jobs.running import run
from lethe.report.findings import read_findings
from lethe.report.report_page import render_page


def write_report(
    inputs: Mapping, page: Path, models: list[str], tasks: dict, settings: dict
) -> None:
    """Writes the report of the experiment as one self-contained HTML file."""
    findings = read_findings(inputs, models, tasks_from_pairs(tasks))
    figures = {Path(path).stem: Path(path).read_bytes() for path in inputs["figures"]}
    with atomic_write(page) as part:
        part.write_text(render_page(findings, figures, settings), "utf-8")


if __name__ == "__main__":
    params = snakemake.params
    choice = {"models": params.models, "tasks": params.tasks, "settings": params.settings}
    files = {"inputs": snakemake.input, "page": Path(snakemake.output.page)}
    run(write_report, snakemake.log[0], **files, **choice)
