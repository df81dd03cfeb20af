"""Which tasks of Z are learned from and which are predicted."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lethe.matrix.forgetting_matrix import Matrix


@dataclass(frozen=True)
class Split:
    """Row numbers of Z to learn from and to predict; `name` is what it asks about."""

    name: str
    train: np.ndarray
    test: np.ndarray


def splits(matrix: Matrix, tasks: Mapping[str, tuple[str, str]]) -> list[Split]:
    """In-domain: the task table's train and test. Out-of-domain: each group left out in turn.

    Tasks of the table's split `ood` are predicted out of domain only.

    Out of domain, the tasks of one group, train and test alike, are predicted from the training
    tasks of the other groups; a table of one group has no such split.

    Parameters
    ----------
    tasks
        task -> (group, split).
    """
    groups = list(dict.fromkeys(group for group, _ in tasks.values()))
    train = [task for task, (_, split) in tasks.items() if split == "train"]
    test = [task for task, (_, split) in tasks.items() if split == "test"]
    found = [Split("in_domain", matrix.rows(train), matrix.rows(test))]
    for group in groups:
        others = [task for task in train if tasks[task][0] != group]
        members = [task for task, (name, _) in tasks.items() if name == group]
        if len(groups) > 1 and others:
            split = Split("out_of_domain", matrix.rows(others), matrix.rows(members))
            found.append(split)
    return found
