from collections.abc import Mapping
from pathlib import Path

from lethe import tables
from lethe.config.task_table import Task, tasks_from_pairs
from lethe.files import write_text
from lethe.jobs.running import run
from lethe.report.findings import read_findings
from lethe.report.report_page import describe_left_out, render_page


def write_report(
    inputs: Mapping,
    figure_files: list[Path],
    page: Path,
    figures: list[str],
    models: list[str],
    tasks: dict[str, Task],
    settings: dict,
    left_out: dict[str, Task],
    left_out_table: Path | None,
    token_files: dict[str, dict[str, str]],
    ledger: Path | None,
) -> None:
    """Writes the report of the experiment as one self-contained HTML file."""
    findings = read_findings(inputs, models, tasks, token_files)
    if left_out_table is not None:
        tables.write_csv(left_out_table, describe_left_out(left_out))
    images = {name: path.read_bytes() for name, path in zip(figures, figure_files, strict=True)}
    text = render_page(
        findings,
        images,
        settings=settings,
        left_out=left_out,
        ledger=None if ledger is None else tables.read_csv(ledger),
    )
    write_text(page, text)


if __name__ == "__main__":
    left_out_table = snakemake.output.get("left_out")
    ledger = snakemake.params.get("ledger")
    run(
        write_report,
        snakemake.log[0],
        inputs=snakemake.input,
        figure_files=[Path(path) for path in snakemake.input.figures],
        page=Path(snakemake.output.page),
        figures=snakemake.params.figures,
        models=snakemake.params.models,
        tasks=tasks_from_pairs(snakemake.params.tasks),
        settings=snakemake.params.settings,
        left_out=tasks_from_pairs(snakemake.params.get("left_out", {})),
        left_out_table=Path(left_out_table) if left_out_table else None,
        token_files=snakemake.params.token_files,
        ledger=Path(ledger) if ledger else None,
    )
