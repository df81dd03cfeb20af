"""Progress of long work."""

import logging
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def progress(items: Iterable, title: str, unit: str, **options: Any) -> tqdm:
    """A progress report every ten seconds, one line each.

    Jobs run side by side and share the terminal, where bars that rewrite their line would rewrite
    each other's. Work of a few seconds stays silent, and so does all work if you set the level of
    the logger "lethe" to WARNING.
    """
    line = "{desc}: {n_fmt}/{total_fmt} {unit}, {elapsed} gone, {remaining} to go{postfix}\n"
    return tqdm(
        items,
        desc=title,
        unit=f"{unit}es" if unit.endswith("ch") else f"{unit}s",
        bar_format=line,
        mininterval=10,
        delay=8,
        leave=False,
        disable=logging.getLogger("lethe").level > logging.INFO,
        **options,
    )
