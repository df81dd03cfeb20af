"""Mixes replayed upstream examples into the stream of new-task examples."""

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def mix(new: Sequence[T], replayed: Sequence[T], accounting: str) -> list[T]:
    """Spreads the replayed examples evenly over the stream.

    Parameters
    ----------
    accounting
        `add`: all new examples stay and the stream gets longer (the paper: steps x (1 + ratio)).
        `swap`: the last new examples make room, so that the compute stays the same.
    """
    if accounting == "swap":
        new = new[: max(0, len(new) - len(replayed))]
    total = len(new) + len(replayed)
    mixed: list[T] = []
    old = fresh = 0
    for length in range(1, total + 1):
        # Among the first `length` examples, the replayed ones never lag behind their share by one.
        behind = (old + 1) * total <= length * len(replayed) + total / 2
        if fresh == len(new) or (old < len(replayed) and behind):
            mixed.append(replayed[old])
            old += 1
        else:
            mixed.append(new[fresh])
            fresh += 1
    return mixed
