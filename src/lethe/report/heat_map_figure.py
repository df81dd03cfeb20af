"""The interactive heat map of Z: measured and predicted forgetting, and their difference.

The page holds the values once, and figures.js arranges them in the order that the reader chooses.
"""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from bokeh.layouts import column
from bokeh.models import (
    ColorBar,
    Column,
    ColumnDataSource,
    FixedTicker,
    LinearAxis,
    LinearColorMapper,
    Range1d,
)
from bokeh.plotting import figure

from lethe.matrix.forgetting_matrix import Matrix
from lethe.report.bokeh_figures import add_hover, as_item, new_figure
from lethe.report.findings import Findings
from lethe.statistics import finite_means

VIEWS = {
    "measured": "measured forgetting",
    "predicted": "predicted forgetting",
    "residual": "measured minus predicted",
}
COMPONENTS = 3
# Missing cells are coded as this number, all others as multiples of the largest value / 32,767.
MISSING = -32768
_LARGEST_CODE = 32767
_ROW_HEIGHT = 13
_HEIGHTS = (220, 900)


def heat_map_data(
    findings: Findings,
    shown: Sequence[int],
    *,
    measured: Mapping[str, np.ndarray],
    predicted: Mapping[str, np.ndarray],
) -> dict[str, Any]:
    """The values and the orders of the heat map, as JSON values.

    Parameters
    ----------
    shown
        Columns of Z that the page shows, in the order of the example browser.
    measured, predicted
        By model, these columns of Z and their predictions (M, n) in nats.

    Returns
    -------
    A mapping. `groups`, `splits`: by task. `limit`: the value of the darkest colour in nats.
    `missing`: the code of a missing cell. `measured`, `predicted`: by model, `scale` and base64
    `codes`, which are int16 of tasks x examples. `rows`, `columns`: by name, an order of tasks
    (names) and of examples (positions). `domains`: of the examples.
    """
    finite = np.concatenate([part[np.isfinite(part)] for part in measured.values()])
    limit = float(np.quantile(np.abs(finite), 0.98)) if len(finite) else 0.0
    first = next(iter(findings.matrices.values()))
    domains = domains_of(first, findings, shown)
    rows, columns = make_orders(findings, measured, domains)
    return {
        "groups": {task: findings.tasks[task].group for task in first.tasks},
        "splits": {task: findings.tasks[task].split for task in first.tasks},
        "limit": max(limit, 1e-6),
        "missing": MISSING,
        "measured": {model: encode_values(part) for model, part in measured.items()},
        "predicted": {model: encode_values(part) for model, part in predicted.items()},
        "rows": rows,
        "columns": columns,
        "domains": domains,
    }


def domains_of(z: Matrix, findings: Findings, shown: Sequence[int]) -> list[str]:
    """Domains of these columns of Z; empty texts for an own matrix."""
    domains = []
    for number in shown:
        example = findings.examples.get(z.example_ids[number])
        domains.append("" if example is None else example.domain)
    return domains


def encode_values(values: np.ndarray) -> dict[str, Any]:
    """Values as 16-bit numbers: `scale`, and `codes` in base64; a value is its code x scale."""
    finite = np.isfinite(values)
    largest = float(np.abs(values[finite]).max()) if finite.any() else 0.0
    scale = largest / _LARGEST_CODE if largest > 0 else 1.0
    codes = np.where(finite, np.round(np.where(finite, values, 0) / scale), MISSING)
    text = base64.b64encode(codes.astype("<i2").tobytes()).decode()
    return {"scale": scale, "codes": text}


def make_orders(
    findings: Findings, values: Mapping[str, np.ndarray], domains: Sequence[str]
) -> tuple[dict[str, list[str]], dict[str, list[int]]]:
    """Orders of tasks and of examples, which are the same for all models.

    Means are over all models. Components are those of the first model's Z without the means of its
    examples.
    """
    model, z = next(iter(findings.matrices.items()))
    stacked = np.concatenate(list(values.values()))
    example_means = finite_means(stacked, axis=0)
    task_means = finite_means(values[model], axis=1)
    groups = [findings.tasks[task].group for task in z.tasks]
    numbers = range(len(z.tasks))
    by_group = sorted(numbers, key=lambda row: (groups[row], z.tasks[row]))
    rows = {"group": by_group, "mean": np.argsort(-task_means, kind="stable").tolist()}
    positions = range(len(domains))
    by_domain = sorted(positions, key=lambda column: (domains[column], -example_means[column]))
    columns = {"domain": by_domain, "mean": np.argsort(-example_means, kind="stable").tolist()}
    first = values[model]
    means = finite_means(first, axis=0)
    centred = np.where(np.isfinite(first), first - means, 0).astype(np.float64)
    tasks, _, examples = np.linalg.svd(centred, full_matrices=False)
    for component in range(min(COMPONENTS, len(examples))):
        # The sign of a component is arbitrary. Its largest task is put first.
        sign = np.sign(tasks[np.abs(tasks[:, component]).argmax(), component]) or 1.0
        name = f"component {component + 1}"
        rows[name] = np.argsort(-sign * tasks[:, component], kind="stable").tolist()
        columns[name] = np.argsort(-sign * examples[component], kind="stable").tolist()
    return {name: [z.tasks[row] for row in order] for name, order in rows.items()}, columns


def make_heat_map(findings: Findings) -> dict[str, Any]:
    """The heat map as JSON for Bokeh: three views with one zoom. figures.js fills them."""
    first = next(iter(findings.matrices.values()))
    cells: dict[str, list] = {name: [np.zeros((1, 1), np.float32)] for name in VIEWS}
    for name in ("task", "example", "domain", "text"):
        cells[name] = [[""]]
    source = ColumnDataSource(cells, name="heat-map-cells")
    ends: dict[str, list] = {name: [] for name in ("x0", "x1", "y0", "y1")}
    boundaries = ColumnDataSource(ends, name="heat-map-boundaries")
    columns = Range1d(start=0, end=1, name="heat-map-columns")
    rows = Range1d(start=len(first.tasks), end=0, name="heat-map-rows")
    mapper = LinearColorMapper(
        palette=_colours(), low=-1, high=1, nan_color="rgba(128, 128, 128, 0.25)"
    )
    mapper.name = "heat-map-colours"
    views = []
    for view, title in VIEWS.items():
        plot = _new_view(view, title, columns=columns, rows=rows, tasks=len(first.tasks))
        image = plot.image(
            image=view,
            x=0,
            y=0,
            dw=1,
            dh=1,
            source=source,
            color_mapper=mapper,
            name=f"{view}-image",
        )
        plot.segment(x0="x0", x1="x1", y0="y0", y1="y1", source=boundaries, color="#24292f")
        tooltips = [("task", "@task"), ("example", "@example"), ("domain", "@domain")]
        tooltips += [("forgetting", "@measured{0.000}"), ("prediction", "@predicted{0.000}")]
        add_hover(plot, [*tooltips, ("text", "@text")], renderers=[image])
        plot.add_layout(ColorBar(color_mapper=mapper, title=findings.unit, width=10), "right")
        views.append(plot)
    layout: Column = column(*views, sizing_mode="stretch_width")
    return as_item(layout)


def _new_view(view: str, title: str, *, columns: Range1d, rows: Range1d, tasks: int) -> figure:
    height = int(np.clip(_ROW_HEIGHT * tasks, *_HEIGHTS)) + 90
    plot = new_figure(height=height, title=title, x_range=columns, y_range=rows)
    plot.name = view
    plot.visible = view == "measured"
    plot.grid.visible = False
    for axis in (plot.xaxis[0], plot.yaxis[0]):
        axis.ticker = FixedTicker(ticks=[])
        axis.major_tick_line_color = None
        axis.axis_line_color = None
    plot.yaxis[0].name = f"{view}-tasks"
    plot.xaxis[0].name = f"{view}-examples"
    groups = LinearAxis(ticker=FixedTicker(ticks=[]), name=f"{view}-groups")
    groups.major_tick_line_color = None
    groups.axis_line_color = None
    plot.add_layout(groups, "right")
    return plot


def _colours(count: int = 255) -> list[str]:
    """Blue over white to red, which colour-blind readers can tell apart."""
    scale = mpl.colormaps["RdBu_r"]
    return [mpl.colors.to_hex(scale(number / (count - 1))) for number in range(count)]
