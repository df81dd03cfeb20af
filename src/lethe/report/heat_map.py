"""The heat map of Z: tasks by group, examples by domain."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from lethe.matrix.forgetting_matrix import Matrix
from lethe.report.figure_style import INK, new_panels
from lethe.report.findings import Findings
from lethe.statistics import finite_means


def draw_heatmap(findings: Findings) -> Figure:
    """Draws Z of every model: tasks by group, examples by domain and mean forgetting."""
    height = 1.4 + 0.135 * len(findings.tasks)
    figure, axes = new_panels(len(findings.matrices), 1, width=10, height=height)
    for axis, (model, z) in zip(axes[:, 0], findings.matrices.items(), strict=True):
        image = draw_matrix(axis, z, findings)
        axis.set_title(f"{model}: forgetting by task and upstream example")
        figure.colorbar(image, ax=axis, label=findings.measure, pad=0.01, fraction=0.025)
    return figure


def draw_matrix(axis: Axes, z: Matrix, findings: Findings, names: bool = True) -> AxesImage:
    """Draws one Z as an image. White is no change; colours are cut at the 98th percentile."""
    groups = [findings.tasks[task].group for task in z.tasks]
    row_order = sorted(range(len(z.tasks)), key=lambda row: (groups[row], z.tasks[row]))
    domains = _domains(z, findings)
    means = finite_means(z.values, axis=0)
    # A column without any value is left out, such as an example that the base model answers wrong.
    columns = np.flatnonzero(np.isfinite(z.values).any(axis=0)).tolist()
    column_order = sorted(columns, key=lambda column: (domains[column], -means[column]))
    values = z.values[row_order][:, column_order]
    limit = max(float(np.nanquantile(np.abs(values), 0.98)), 1e-6)
    image = axis.imshow(
        values, aspect="auto", cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest"
    )
    axis.spines[:].set_visible(False)
    _label_domains(axis, [domains[column] for column in column_order])
    axis.set_yticks([])
    if names:
        axis.set_yticks(range(len(row_order)), [z.tasks[row] for row in row_order], fontsize=7)
    axis.tick_params(length=0)
    return image


def _domains(z: Matrix, findings: Findings) -> list[str]:
    domains = {example.example_id: example.domain for example in findings.upstream}
    return [domains.get(example_id, "upstream examples") for example_id in z.example_ids]


def _label_domains(axis: Axes, ordered: list[str]) -> None:
    """Names each domain below the middle of its columns and draws lines between domains."""
    names = list(dict.fromkeys(ordered))
    starts = [ordered.index(name) for name in names]
    ends = [*starts[1:], len(ordered)]
    middles = [(start + end - 1) / 2 for start, end in zip(starts, ends, strict=True)]
    axis.set_xticks(middles, names)
    for start in starts[1:]:
        axis.axvline(start - 0.5, color=INK, linewidth=0.5)
