from collections.abc import Mapping
from pathlib import Path

from lethe.config.task_table import Task, tasks_from_pairs
from lethe.jobs.running import run
from lethe.report.figure_style import save_figure
from lethe.report.findings import read_findings
from lethe.report.plots import draw_figure


def draw_plots(
    inputs: Mapping,
    png_files: list[Path],
    svg_files: list[Path],
    figures: list[str],
    models: list[str],
    tasks: dict[str, Task],
) -> None:
    """Draws every figure as PNG and SVG."""
    findings = read_findings(inputs, models, tasks)
    for name, png, svg in zip(figures, png_files, svg_files, strict=True):
        save_figure(draw_figure(name, findings), png, svg)


if __name__ == "__main__":
    run(
        draw_plots,
        snakemake.log[0],
        inputs=snakemake.input,
        png_files=[Path(path) for path in snakemake.output.png],
        svg_files=[Path(path) for path in snakemake.output.svg],
        figures=snakemake.params.figures,
        models=snakemake.params.models,
        tasks=tasks_from_pairs(snakemake.params.tasks),
    )
