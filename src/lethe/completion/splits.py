"""Which tasks of Z are learned from and which are predicted."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lethe.config.task_table import Task
from lethe.matrix.forgetting_matrix import Matrix


@dataclass(frozen=True)
class Split:
    """Row numbers of Z to learn from (`train`) and to predict (`test`).

    `group` is the group that is left out, None if none is.
    """

    name: str
    train: np.ndarray
    test: np.ndarray
    group: str | None = None


def make_splits(matrix: Matrix, tasks: Mapping[str, Task]) -> list[Split]:
    """In-domain: the task table's train and test. Out-of-domain: each group left out in turn.

    Out of domain, the tasks of one group, train and test alike, are predicted from the training
    tasks of the other groups; a table of one group has no such split. Tasks of the table's split
    `ood` are predicted out of domain only.
    """
    train = names_in_split(tasks, "train")
    test = names_in_split(tasks, "test")
    splits = [Split(name="in_domain", train=matrix.rows(train), test=matrix.rows(test))]
    groups = list(dict.fromkeys(task.group for task in tasks.values()))
    for group in groups:
        others = [name for name in train if tasks[name].group != group]
        members = [name for name, task in tasks.items() if task.group == group]
        if len(groups) > 1 and others:
            splits.append(
                Split(
                    name="out_of_domain",
                    train=matrix.rows(others),
                    test=matrix.rows(members),
                    group=group,
                )
            )
    return splits


def names_in_split(tasks: Mapping[str, Task], split: str) -> list[str]:
    """Names of the tasks of the table's split `train`, `test` or `ood`, in the table's order."""
    return [name for name, task in tasks.items() if task.split == split]
