"""How a Bokeh figure becomes part of the page: its JSON, its style, and Bokeh's own JavaScript.

Bokeh carries its JavaScript in its wheel, and its figures need no `eval` as long as no model holds
JavaScript of its own. figures.js fills the figures and follows clicks.
"""

from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from bokeh.embed import json_item
from bokeh.models import (
    BoxZoomTool,
    HoverTool,
    LayoutDOM,
    PanTool,
    ResetTool,
    WheelZoomTool,
)
from bokeh.plotting import figure


def new_figure(*, height: int, title: str, **options: Any) -> figure:
    """A figure as wide as the page, with box zoom, pan, wheel zoom and reset, without a logo."""
    box_zoom = BoxZoomTool()
    plot = figure(
        height=height,
        title=title,
        sizing_mode="stretch_width",
        tools=[box_zoom, PanTool(), WheelZoomTool(), ResetTool()],
        background_fill_color=None,
        border_fill_color=None,
        outline_line_color=None,
        **options,
    )
    plot.toolbar.logo = None
    plot.toolbar.active_drag = box_zoom
    # The wheel scrolls the page until the reader switches its zoom on.
    plot.toolbar.active_scroll = None
    plot.grid.grid_line_alpha = 0.25
    return plot


def add_hover(plot: figure, tooltips: Sequence[tuple[str, str]], renderers: Any = "auto") -> None:
    """Shows the tooltips, (label, `@column`), at the glyphs under the pointer."""
    plot.add_tools(
        HoverTool(tooltips=list(tooltips), renderers=renderers, point_policy="snap_to_data")
    )


def as_item(root: LayoutDOM) -> dict[str, Any]:
    """A figure as the JSON that `Bokeh.embed.embed_item` reads, the same for the same figure.

    Bokeh numbers the models of a process. Here each figure's models are numbered from 1.
    """
    item = json_item(root)
    del item["target_id"]
    numbers: dict[str, str] = {}
    return _renumber(item, numbers)


def _renumber(value: Any, numbers: dict[str, str]) -> Any:
    """A copy of JSON in which the ids of models are numbered by their first use."""
    if isinstance(value, Mapping):
        copy = {}
        for key, part in value.items():
            if key in ("id", "root_id") and isinstance(part, str):
                copy[key] = numbers.setdefault(part, f"m{len(numbers) + 1}")
            else:
                copy[key] = _renumber(part, numbers)
        return copy
    if isinstance(value, list | tuple):
        return [_renumber(part, numbers) for part in value]
    return value


def read_library() -> str:
    """Bokeh's JavaScript without widgets, tables and WebGL."""
    path = resources.files("bokeh") / "server" / "static" / "js" / "bokeh.min.js"
    return path.read_text("utf-8")
