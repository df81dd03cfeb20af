from collections.abc import Mapping, Sequence
from pathlib import Path

from lethe.config.task_table import tasks_from_pairs
from lethe.jobs.running import run
from lethe.report.findings import read_findings
from lethe.report.plots import draw_figure, save_figure


def draw_plots(
    inputs: Mapping, outputs: Sequence[str], figures: list[str], models: list[str], tasks: dict
) -> None:
    """Draws every figure as PNG and SVG."""
    findings = read_findings(inputs, models, tasks_from_pairs(tasks))
    paths = [Path(path) for path in outputs]
    for name in figures:
        figure = draw_figure(name, findings)
        save_figure(figure, *[path for path in paths if path.stem == name])


if __name__ == "__main__":
    params = snakemake.params
    choice = {"figures": params.figures, "models": params.models, "tasks": params.tasks}
    files = {"inputs": snakemake.input, "outputs": list(snakemake.output)}
    run(draw_plots, snakemake.log[0], **files, **choice)
