"""Colours, labels and panels that all figures share, and how a figure is written."""

from collections.abc import Iterable
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from lethe.files import atomic_write

INK = "#24292f"
FAINT = "#8b949e"
# Each method has one colour in all figures. The colours do not rely on red against green.
COLOURS = {
    "none": "#57606a",
    "random": "#9aa4ae",
    "constant": "#d0d7de",
    "column_mean": "#c69214",
    "additive": "#56a0d3",
    "affine": "#a3c7e3",
    "knn": "#7b61c4",
    "soft_impute": "#c4622d",
    "logistic_mf": "#5e9cae",
    "logistic_fa": "#7fb69e",
    "logistic_stack": "#3d6b58",
    "mf": "#0b6e99",
    "gaussian": "#1b7f5c",
    "gaussian_sibling": "#0a3d2c",
    "gaussian_prior": "#8a9a1f",
    "gaussian_local": "#57b894",
    "gaussian_embeddings": "#8cc7a1",
    "oracle": "#b5467a",
    "balanced": "#7c8791",
    "domain": "#3f9a78",
    "coverage": "#0f5a44",
    "importance": "#2b9348",
    "perplexity": "#a06a3b",
    "perplexity_median": "#cfae8e",
    "mir": "#8f5f7f",
    "mir_measured": "#a98199",
    "mir_paper_code": "#c3a3b8",
    "gradient": "#8c3b2a",
    "gradient_matching": "#b8705f",
    "online": "#2d8c8c",
    "closed_loop": "#1d5f6e",
}
LABELS = {
    "none": "no replay",
    "random": "random",
    "constant": "constant",
    "column_mean": "column mean",
    "additive": "additive",
    "affine": "affine",
    "knn": "KNN",
    "soft_impute": "soft-impute",
    "logistic_mf": "logistic MF",
    "logistic_fa": "logistic factor analysis",
    "logistic_stack": "logistic stack",
    "mf": "matrix factorisation",
    "gaussian": "Gaussian",
    "gaussian_sibling": "Gaussian, with sibling",
    "gaussian_prior": "Gaussian, with prior",
    "gaussian_local": "Gaussian, local",
    "gaussian_embeddings": "Gaussian, with embeddings",
    "oracle": "oracle",
    "balanced": "balanced",
    "domain": "domain",
    "coverage": "coverage",
    "importance": "importance sampling",
    "perplexity": "highest loss",
    "perplexity_median": "median loss",
    "mir": "MIR",
    "mir_measured": "MIR, measured",
    "mir_paper_code": "MIR, least forgotten",
    "gradient": "gradient",
    "gradient_matching": "gradient matching",
    "online": "online",
    "closed_loop": "closed loop",
}
# Colours of replay runs that have a name of their own; no method has one of these.
RUN_COLOURS = ("#6b7f2a", "#8a3b3b", "#2f6f73", "#9a5f9a", "#4a5a8a", "#b07d5b")
MODEL_COLOURS = ("#0b6e99", "#c4622d", "#1b7f5c", "#7b61c4", "#b5467a", "#c69214")
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "grid.color": "#e3e7eb",
    # Names from data are text, even if they hold dollar signs.
    "text.parse_math": False,
    # A fixed salt gives the SVG the same ids, and so the same bytes, each time.
    "svg.hashsalt": "lethe",
    "svg.fonttype": "none",
}


def save_figure(figure: Figure, *paths: Path) -> None:
    """Writes a figure to .png and .svg files, completely or not at all, without a date in them."""
    for path in paths:
        kind = path.suffix[1:]
        metadata = {"Date": None} if kind == "svg" else {"Software": None}
        with atomic_write(path) as part, mpl.rc_context(STYLE):
            figure.savefig(part, format=kind, dpi=150, metadata=metadata)


def new_panels(
    rows: int, columns: int, *, width: float, height: float
) -> tuple[Figure, np.ndarray]:
    """A figure of rows x columns panels, each `width` by `height` inches."""
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def label_of(name: str) -> str:
    """The label of a method or strategy, or the name of a replay run without underscores."""
    return LABELS.get(name, name.replace("_", " "))


def colours_of(names: Iterable[str]) -> list[str]:
    """The colour of each method, strategy or replay run."""
    colours = []
    for i, name in enumerate(names):
        colours.append(COLOURS.get(name, RUN_COLOURS[i % len(RUN_COLOURS)]))
    return colours
