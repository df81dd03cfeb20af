"""Reads tasks' examples, and associations in the order of a Z."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lethe.data.examples import Example, read_examples
from lethe.errors import LetheError
from lethe.matrix import forgetting_matrix
from lethe.matrix.forgetting_matrix import Matrix


def read_tasks(paths: Sequence[Path | str], count: int) -> dict[str, list[Example]]:
    """Task -> its first `count` training examples, of files `tasks/<task>/train.parquet`."""
    return {Path(path).parent.name: read_examples(Path(path))[:count] for path in paths}


def read_associations(paths: Sequence[Path | str], z: Matrix) -> dict[str, np.ndarray]:
    """Name -> association (M, N), rows and columns in the order of Z; a name is a file's stem.

    As they are on disk: `gradient` is the plain inner product, which forgetting goes against; a
    predictor that fits a slope does not mind, one that orders examples takes its negative.

    Raises
    ------
    LetheError
        Naming the file that lacks a task or example of Z.
    """
    wanted = (z.tasks, z.example_ids)
    return {Path(path).stem: aligned(forgetting_matrix.read(path), *wanted, path) for path in paths}


def aligned(
    found: Matrix, tasks: list[str], example_ids: list[str], path: Path | str
) -> np.ndarray:
    """The values (M, N) of `found`, which may hold more, in the order given.

    Raises
    ------
    LetheError
        Naming the file, if a task or example is not in it.
    """
    rows = _places(found.tasks, tasks, "task", path)
    columns = _places(found.example_ids, example_ids, "example", path)
    return found.values[np.ix_(rows, columns)]


def _places(have: list[str], wanted: list[str], kind: str, path: Path | str) -> list[int]:
    place = {name: i for i, name in enumerate(have)}
    if missing := [name for name in wanted if name not in place]:
        raise LetheError(
            f"{path}: lacks {len(missing)} {kind}(s) that are wanted, such as {missing[0]!r}; it "
            "was made for another experiment: delete it and run again"
        )
    return [place[name] for name in wanted]
