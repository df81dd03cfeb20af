"""Does a Z look like one? Counts and warnings that cost seconds and can save a wrong result."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from lethe.matrix.forgetting_matrix import Matrix

NAMED = 5  # ids per kind that the report names
FAR = 10  # robust standard deviations from the median
SLICE = 1 << 20  # cells that are computed on at a time
QUANTILES = (0.01, 0.25, 0.5, 0.75, 0.99)


def check_sanity(matrix: Matrix) -> dict[str, Any]:
    """Describes a Z as `lethe.matrix.own_matrix` read it, infinite cells included.

    Returns
    -------
    Counts, shares and a few ids by name: shape, missing, values (nats), sign, outliers (cells
    over 10 robust standard deviations, IQR / 1.349, from the median), duplicates, constants; and
    `warnings`, a list of sentences.
    """
    values = matrix.values
    finite = values.ravel()
    if not np.isfinite(values).all():
        finite = values[np.isfinite(values)]
    report = {
        "shape": {"tasks": len(matrix.tasks), "examples": len(matrix.example_ids)},
        "missing": _missing(matrix),
        "values": _distribution(finite),
        "sign": {"negative_share": float((finite < 0).mean()) if len(finite) else None},
        "outliers": _outliers(matrix, finite),
        "duplicates": {
            "tasks": _duplicates(values, matrix.tasks),
            "examples": _duplicates(values.T, matrix.example_ids),
        },
        "constants": {
            "tasks": _constants(values, matrix.tasks),
            "examples": _constants(values.T, matrix.example_ids),
        },
    }
    report["warnings"] = [*_warnings(report), *matrix.notes]
    return report


def describe_sanity(report: dict[str, Any]) -> str:
    """The report of `check_sanity` as a few lines of text."""
    shape = report["shape"]
    missing = report["missing"]
    lines = [
        f"{shape['tasks']} tasks x {shape['examples']} examples; {missing['nan']} NaN and "
        f"{missing['infinite']} infinite cells"
    ]
    values = report["values"]
    if values:
        negative = report["sign"]["negative_share"]
        lines.append(
            f"mean {values['mean']:.4g}, sd {values['sd']:.4g}, from {values['min']:.4g} to "
            f"{values['max']:.4g} nats; {negative:.1%} of cells are negative"
        )
    lines += [f"warning: {text}" for text in report["warnings"]]
    return "\n".join(lines)


def _missing(matrix: Matrix) -> dict[str, Any]:
    finite = np.isfinite(matrix.values)
    empty_tasks = np.flatnonzero(~finite.any(axis=1))
    empty_examples = np.flatnonzero(~finite.any(axis=0))
    return {
        "nan": int(np.isnan(matrix.values).sum()),
        "infinite": int(np.isinf(matrix.values).sum()),
        "examples_with_any": int((~finite.all(axis=0)).sum()),
        "tasks_with_any": int((~finite.all(axis=1)).sum()),
        "empty_tasks": _count_and_first([matrix.tasks[i] for i in empty_tasks]),
        "empty_examples": _count_and_first([matrix.example_ids[j] for j in empty_examples]),
    }


def _distribution(finite: np.ndarray) -> dict[str, Any] | None:
    if not len(finite):
        return None
    quantiles = _quantiles(finite, QUANTILES)
    mean = finite.mean(dtype=np.float64)
    squares = [np.square(part - mean).sum() for part in _slices(finite)]
    return {
        "mean": float(mean),
        "sd": float(np.sqrt(sum(squares) / len(finite))),
        "min": float(finite.min()),
        "max": float(finite.max()),
        "binary": all(((part == 0) | (part == 1)).all() for part in _slices(finite)),
        "quantiles": {str(q): value for q, value in zip(QUANTILES, quantiles, strict=True)},
    }


def _slices(values: np.ndarray) -> list[np.ndarray]:
    """Views of values (n,) that are small enough for float64 copies."""
    return [values[start : start + SLICE] for start in range(0, len(values), SLICE)]


def _quantiles(values: np.ndarray, shares: Sequence[float]) -> list[float]:
    """Quantiles of values (n,) as of `np.quantile`, without copies in float64."""
    positions = np.array(shares) * (len(values) - 1)
    below = np.floor(positions).astype(int)
    above = np.ceil(positions).astype(int)
    ordered = np.partition(values, np.unique([below, above]))
    low = ordered[below].astype(np.float64)
    high = ordered[above].astype(np.float64)
    weight = positions - below
    from_below = low + (high - low) * weight
    from_above = high - (high - low) * (1 - weight)
    return np.where(weight < 0.5, from_below, from_above).tolist()


def _outliers(matrix: Matrix, finite: np.ndarray) -> dict[str, Any]:
    low, middle, high = _quantiles(finite, (0.25, 0.5, 0.75)) if len(finite) else (0, 0, 0)
    spread = (high - low) / 1.349
    if spread == 0:
        # Half of all cells have one value (a binary Z, say), which leaves no yardstick for 'far'.
        return {"count": 0, "limit": None, "farthest": []}
    count = 0
    candidates = []
    for i, row in enumerate(matrix.values):
        distance = np.abs(row.astype(np.float64) - middle) / spread
        distance = np.nan_to_num(distance, nan=0.0, posinf=0.0)
        far = np.flatnonzero(distance > FAR)
        count += len(far)
        farthest_of_row = far[np.argsort(-distance[far], kind="stable")[:NAMED]]
        candidates += [(distance[j], i, j) for j in farthest_of_row]
    farthest = []
    for _, i, j in sorted(candidates, key=lambda candidate: -candidate[0])[:NAMED]:
        farthest.append(
            {
                "task": matrix.tasks[i],
                "example_id": matrix.example_ids[j],
                "value": float(matrix.values[i, j]),
            }
        )
    return {"count": count, "limit": float(FAR * spread), "farthest": farthest}


def _duplicates(lines: np.ndarray, names: list[str]) -> dict[str, Any]:
    """Lines that repeat another bit by bit; lines without any value are not compared."""
    hashes = _hash_lines(lines)
    _, group, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    names_by_content = defaultdict(list)
    # Only lines of equal hash can be equal; of millions of lines these are few.
    for number in np.flatnonzero(counts[group] > 1):
        line = np.ascontiguousarray(lines[number])
        if np.isfinite(line).any():
            names_by_content[line.tobytes()].append(names[number])
    groups = [group for group in names_by_content.values() if len(group) > 1]
    return {
        "count": sum(len(group) - 1 for group in groups),
        "groups": [group[:NAMED] for group in groups[:NAMED]],
    }


def _hash_lines(lines: np.ndarray) -> np.ndarray:
    """A 64-bit hash of the bits of each float32 line; equal lines have equal hashes."""
    count, length = lines.shape
    factors = np.random.default_rng(67).integers(1, 2**63, size=length, dtype=np.uint64)
    hashes = np.zeros(count, dtype=np.uint64)
    if count <= length:
        for number, line in enumerate(lines):
            bits = np.ascontiguousarray(line, dtype=np.float32).view(np.uint32)
            hashes[number] = (bits * factors).sum(dtype=np.uint64)
        return hashes
    for column, factor in zip(lines.T, factors, strict=True):
        bits = np.ascontiguousarray(column, dtype=np.float32).view(np.uint32)
        hashes += bits * factor
    return hashes


def _constants(lines: np.ndarray, names: list[str]) -> dict[str, Any]:
    """Lines with several finite values, all of them equal."""
    constant = np.zeros(len(lines), dtype=bool)
    step = max(1, SLICE // max(lines.shape[1], 1))
    for start in range(0, len(lines), step):
        part = lines[start : start + step]
        observed = np.isfinite(part)
        least = np.where(observed, part, np.inf).min(axis=1)
        greatest = np.where(observed, part, -np.inf).max(axis=1)
        constant[start : start + step] = (least == greatest) & (observed.sum(axis=1) > 1)
    return _count_and_first([names[number] for number in np.flatnonzero(constant)])


def _count_and_first(names: list[str]) -> dict[str, Any]:
    return {"count": len(names), "first": names[:NAMED]}


def _warnings(report: dict[str, Any]) -> list[str]:
    values = report["values"]
    missing = report["missing"]
    shape = report["shape"]
    if values is None:
        return ["no cell holds a number"]
    warnings = []
    if values["mean"] < 0:
        warnings.append(
            f"mean forgetting is negative ({values['mean']:.4g}): is it loss after minus loss "
            "before? A log-likelihood needs its sign turned"
        )
    if missing["infinite"]:
        warnings.append(f"{missing['infinite']} infinite cells are treated as missing")
    if missing["examples_with_any"] == shape["examples"]:
        warnings.append(
            "no example was measured for every task; the rank curve leaves out tasks until some "
            "examples are complete, and its log names them"
        )
    elif missing["examples_with_any"] > 0.1 * shape["examples"]:
        warnings.append(
            f"{missing['examples_with_any']} of {shape['examples']} examples lack a cell; the rank "
            "curve leaves them out"
        )
    outliers = report["outliers"]["count"]
    if outliers:
        warnings.append(
            f"{outliers} cells lie over {FAR} robust standard deviations from the median; squared "
            "errors, R² and RMSE, depend strongly on them"
        )
    if shape["tasks"] > shape["examples"]:
        warnings.append(
            f"more tasks ({shape['tasks']}) than examples ({shape['examples']}): is the layout "
            "right?"
        )
    for kind, verb in (("duplicates", "repeat another"), ("constants", "are constant")):
        for axis in ("tasks", "examples"):
            count = report[kind][axis]["count"]
            if count:
                warnings.append(f"{count} {axis} {verb}")
    return warnings
