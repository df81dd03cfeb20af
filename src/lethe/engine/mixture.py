"""Mixes replayed upstream examples into the stream of new-task examples."""

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def mix(new: Sequence[T], replayed: Sequence[T], accounting: str) -> list[T]:
    """Spreads the replayed examples evenly over the stream.

    `add`: all new examples stay and the stream gets longer (the paper: steps x (1 + ratio)).
    `swap`: the last new examples make room, so that the compute stays the same.
    """
    kept = new[: max(0, len(new) - len(replayed))] if accounting == "swap" else new
    total = len(kept) + len(replayed)
    mixed: list[T] = []
    old = fresh = 0
    for place in range(1, total + 1):
        # The share of replayed examples among the first `place` never lags by a whole one.
        if old < len(replayed) and (old + 1) * total <= place * len(replayed) + total / 2:
            mixed.append(replayed[old])
            old += 1
        elif fresh < len(kept):
            mixed.append(kept[fresh])
            fresh += 1
        else:
            mixed.append(replayed[old])
            old += 1
    return mixed
