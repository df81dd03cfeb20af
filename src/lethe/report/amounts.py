"""Amounts of forgetting and their intervals as words of a sentence."""

import numpy as np


def format_interval(low: float, high: float, digits: str) -> str:
    """Writes an interval, or `(no interval)` if an end is unknown."""
    if not np.isfinite([low, high]).all():
        return "(no interval)"
    return f"[{low:{digits}}, {high:{digits}}]"


def format_amount(value: float, *, binary: bool) -> str:
    """Forgetting in nats, or lost right answers (a share from 0 to 1) in percent."""
    return f"{100 * value:.1f} % of the right answers" if binary else f"{value:.3f} nats"


def format_difference(
    difference: float, interval: tuple[float, float] | None = None, *, binary: bool
) -> str:
    """A difference in forgetting with its sign, and its interval if there is one."""
    scale, digits, unit = (100, "+z.1f", "percentage points") if binary else (1, "+z.3f", "nats")
    text = f"{scale * difference:{digits}} {unit}"
    if interval is None:
        return text
    low, high = interval
    return f"{text} {format_interval(scale * low, scale * high, digits)}"
