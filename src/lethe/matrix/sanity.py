"""Does a Z look like one? Counts and warnings that cost seconds and save a wrong result."""

from collections import defaultdict
from typing import Any

import numpy as np

from lethe.matrix.forgetting_matrix import Matrix

NAMED = 5  # ids that the report names of each kind
FAR = 10  # robust standard deviations from the median


def sanity(matrix: Matrix) -> dict[str, Any]:
    """Report on a Z as it was read (`lethe.matrix.own_matrix.read`), infinite cells included.

    Returns
    -------
    Counts, shares and a few ids by name: shape, missing, values (nats), sign, outliers (cells
    over 10 robust standard deviations, IQR / 1.349, from the median), duplicates, constants; and
    `warnings`, a list of sentences.
    """
    values = np.where(np.isfinite(matrix.values), matrix.values, np.nan).astype(np.float64)
    known = values[np.isfinite(values)]
    report = {
        "shape": {"tasks": len(matrix.tasks), "examples": len(matrix.example_ids)},
        "missing": _missing(matrix),
        "values": _distribution(known),
        "sign": {"negative_share": float((known < 0).mean()) if len(known) else None},
        "outliers": _outliers(matrix, known),
        "duplicates": {
            "tasks": _alike(matrix.values, matrix.tasks),
            "examples": _alike(matrix.values.T, matrix.example_ids),
        },
        "constants": {
            "tasks": _constant(values, matrix.tasks),
            "examples": _constant(values.T, matrix.example_ids),
        },
    }
    return {**report, "warnings": _warnings(report)}


def sentences(report: dict[str, Any]) -> str:
    """The report as a few lines of text."""
    shape, values, missing = report["shape"], report["values"], report["missing"]
    lines = [
        f"{shape['tasks']} tasks x {shape['examples']} examples; {missing['nan']} NaN and "
        f"{missing['infinite']} infinite cells"
    ]
    if values:
        negative = report["sign"]["negative_share"]
        lines.append(
            f"mean {values['mean']:.4g}, sd {values['sd']:.4g}, from {values['min']:.4g} to "
            f"{values['max']:.4g} nats; {negative:.1%} of cells are negative"
        )
    return "\n".join([*lines, *(f"warning: {text}" for text in report["warnings"])])


def _missing(matrix: Matrix) -> dict[str, Any]:
    finite = np.isfinite(matrix.values)
    return {
        "nan": int(np.isnan(matrix.values).sum()),
        "infinite": int(np.isinf(matrix.values).sum()),
        "examples_with_any": int((~finite.all(axis=0)).sum()),
        "tasks_with_any": int((~finite.all(axis=1)).sum()),
        "empty_tasks": _some([matrix.tasks[i] for i in np.flatnonzero(~finite.any(axis=1))]),
        "empty_examples": _some(
            [matrix.example_ids[i] for i in np.flatnonzero(~finite.any(axis=0))]
        ),
    }


def _distribution(known: np.ndarray) -> dict[str, float] | None:
    if not len(known):
        return None
    points = (0.01, 0.25, 0.5, 0.75, 0.99)
    quantiles = dict(zip(map(str, points), np.quantile(known, points).tolist(), strict=True))
    return {
        "mean": float(known.mean()),
        "sd": float(known.std()),
        "min": float(known.min()),
        "max": float(known.max()),
        "binary": bool(np.isin(known, (0.0, 1.0)).all()),
        "quantiles": quantiles,
    }


def _outliers(matrix: Matrix, known: np.ndarray) -> dict[str, Any]:
    low, middle, high = np.quantile(known, (0.25, 0.5, 0.75)) if len(known) else (0, 0, 0)
    spread = (high - low) / 1.349
    if spread == 0:
        # Half of all cells are one value (binary Z, say): there is no yardstick for 'far'.
        return {"count": 0, "limit": None, "farthest": []}
    distance = np.nan_to_num(np.abs(matrix.values - middle) / spread, nan=0.0, posinf=0.0)
    order = np.argsort(-distance, axis=None, kind="stable")[:NAMED]
    cells = [np.unravel_index(place, distance.shape) for place in order]
    return {
        "count": int((distance > FAR).sum()),
        "limit": float(FAR * spread),
        "farthest": [
            {
                "task": matrix.tasks[i],
                "example_id": matrix.example_ids[j],
                "value": float(matrix.values[i, j]),
            }
            for i, j in cells
            if distance[i, j] > FAR
        ],
    }


def _alike(lines: np.ndarray, names: list[str]) -> dict[str, Any]:
    """Lines that repeat another bit by bit; lines without any value are not compared."""
    groups = defaultdict(list)
    for name, line in zip(names, np.ascontiguousarray(lines), strict=True):
        if np.isfinite(line).any():
            groups[line.tobytes()].append(name)
    twice = [group for group in groups.values() if len(group) > 1]
    return {
        "count": sum(len(group) - 1 for group in twice),
        "groups": [group[:NAMED] for group in twice[:NAMED]],
    }


def _constant(lines: np.ndarray, names: list[str]) -> dict[str, Any]:
    flat = [name for name, line in zip(names, lines, strict=True) if _is_flat(line)]
    return _some(flat)


def _is_flat(line: np.ndarray) -> bool:
    known = line[np.isfinite(line)]
    return len(known) > 1 and bool((known == known[0]).all())


def _some(names: list[str]) -> dict[str, Any]:
    return {"count": len(names), "first": names[:NAMED]}


def _warnings(report: dict[str, Any]) -> list[str]:
    values, missing, shape = report["values"], report["missing"], report["shape"]
    if values is None:
        return ["no cell holds a number"]
    found = []
    if values["mean"] < 0:
        found.append(
            f"mean forgetting is negative ({values['mean']:.4g}): is it loss after minus loss "
            "before? A log-likelihood needs its sign turned"
        )
    if missing["infinite"]:
        found.append(f"{missing['infinite']} infinite cells are treated as missing")
    if missing["examples_with_any"] > 0.1 * shape["examples"]:
        found.append(
            f"{missing['examples_with_any']} of {shape['examples']} examples miss a cell; the rank "
            "curve leaves them out"
        )
    if count := report["outliers"]["count"]:
        found.append(
            f"{count} cells lie over {FAR} robust standard deviations from the median; squared "
            "errors, R² and RMSE, hang on them"
        )
    if shape["tasks"] > shape["examples"]:
        found.append(
            f"more tasks ({shape['tasks']}) than examples ({shape['examples']}): is the layout "
            "right?"
        )
    for kind, what in (("duplicates", "repeat another"), ("constants", "are constant")):
        for axis in ("tasks", "examples"):
            if count := report[kind][axis]["count"]:
                found.append(f"{count} {axis} {what}")
    return found
