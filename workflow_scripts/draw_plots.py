from collections.abc import Mapping, Sequence
from pathlib import Path

from lethe.jobs.running import run
from lethe.report import findings, plots


def draw_plots(
    inputs: Mapping, outputs: Sequence[str], figures: list[str], models: list[str], tasks: dict
) -> None:
    """Draws every figure as PNG and SVG."""
    found = findings.read(inputs, models, tasks)
    paths = [Path(path) for path in outputs]
    for name in figures:
        plots.save(plots.draw(name, found), *[path for path in paths if path.stem == name])


if __name__ == "__main__":
    params = snakemake.params
    choice = {"figures": params.figures, "models": params.models, "tasks": params.tasks}
    files = {"inputs": snakemake.input, "outputs": list(snakemake.output)}
    run(draw_plots, snakemake.log[0], **files, **choice)
