"""What do the components of Z stand for? Their tasks and texts, their domains, and a tree of tasks.

Components are those of the uncentred singular value decomposition, as in the rank curve. Examples
that were not measured for every task are left out, never filled in.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform

from lethe.analysis.complete_block import complete_tasks
from lethe.analysis.low_rank import components
from lethe.matrix.forgetting_matrix import Matrix

COMPONENTS = 5
# Tasks and examples that are listed at each end of a component.
LISTED = 10
# Share of the examples at one end of a component whose domains are tested.
TOP_SHARE = 0.1
# Ordering the leaves of a tree takes much longer with many tasks.
MOST_ORDERED = 300


@dataclass(frozen=True)
class Components:
    """Components of the complete part of Z.

    A component's share of a cell is the product of its two loadings. Loadings of tasks are in nats;
    their size is the root mean square, over examples, of that share. Squares of the loadings of
    examples have mean 1.

    Attributes
    ----------
    task_loadings
        Loadings (M, R) of `tasks`; each component has a positive sum.
    example_loadings
        Loadings (N, R) of `example_ids`.
    shares
        Share (R,) of the sum of squares of Z.
    """

    tasks: list[str]
    example_ids: list[str]
    task_loadings: np.ndarray
    example_loadings: np.ndarray
    shares: np.ndarray

    @property
    def rank(self) -> int:
        """Number of components."""
        return len(self.shares)


def complete_part(z: Matrix) -> Matrix:
    """The examples of Z that were measured for every task.

    If there is none, tasks are left out as in `lethe.analysis.complete_block`. If no two tasks
    share two examples, the result has no example.
    """
    values = z.values
    tasks = z.tasks
    if not np.isfinite(values).all(axis=0).any():
        rows = complete_tasks([values])
        values = values[rows]
        tasks = [z.tasks[row] for row in rows]
    complete = np.isfinite(values).all(axis=0) if len(tasks) else np.zeros(values.shape[1], bool)
    example_ids = [z.example_ids[number] for number in np.flatnonzero(complete)]
    return Matrix(values=values[:, complete], tasks=list(tasks), example_ids=example_ids)


def find_components(z: Matrix, most: int = COMPONENTS) -> Components:
    """The first components of the complete part of Z.

    Components that explain less than a millionth of the sum of squares are left out.
    """
    part = complete_part(z)
    examples = len(part.example_ids)
    total = float(np.square(part.values, dtype=np.float64).sum())
    rank = min(most, len(part.tasks), examples)
    if not rank or not total:
        empty = np.zeros((0, 0))
        return Components(part.tasks, part.example_ids, empty, empty, shares=np.zeros(0))
    of_tasks, of_examples = components(part.values, rank)
    shares = np.square(of_tasks).sum(axis=0) / total
    kept = shares > 1e-6
    return Components(
        tasks=part.tasks,
        example_ids=part.example_ids,
        task_loadings=of_tasks[:, kept] / np.sqrt(examples),
        example_loadings=of_examples[:, kept] * np.sqrt(examples),
        shares=shares[kept],
    )


def loading_records(factors: Components, domains: Mapping[str, str]) -> list[dict[str, Any]]:
    """Lines of components.csv: the tasks and examples at both ends of every component.

    Parameters
    ----------
    domains
        Domain of each example, by id; empty if there are none.
    """
    lines = []
    for number in range(factors.rank):
        of_component = {"component": number + 1, "share": float(factors.shares[number])}
        kinds = (
            ("task", factors.tasks, factors.task_loadings[:, number]),
            ("example", factors.example_ids, factors.example_loadings[:, number]),
        )
        for kind, names, loadings in kinds:
            for end, order in _both_ends(loadings, LISTED).items():
                for position, index in enumerate(order, start=1):
                    line = {"kind": kind, "end": end, "position": position, "name": names[index]}
                    line["domain"] = domains.get(names[index], "") if kind == "example" else ""
                    lines.append(of_component | line | {"loading": float(loadings[index])})
    return lines


def _both_ends(loadings: np.ndarray, most: int) -> dict[str, list[int]]:
    """Numbers of the highest and the lowest loadings; no number is in both."""
    order = np.argsort(-loadings, kind="stable").tolist()
    count = min(most, max(1, len(order) // 2))
    return {"highest": order[:count], "lowest": order[::-1][: min(count, len(order) - count)]}


def domain_records(factors: Components, domains: Mapping[str, str]) -> list[dict[str, Any]]:
    """Lines of component_domains.csv, which test whether a domain is frequent at an end.

    The tenth of the examples with the highest (or the lowest) loadings is compared with a random
    draw of as many examples: p is the hypergeometric probability of as many examples of the domain
    or more. q is p after the correction of Benjamini and Hochberg (1995) for all lines. The test
    takes the examples as independent. Pieces of one document are not, so q is too small for them.
    """
    lines: list[dict[str, Any]] = []
    labels = np.array([domains[example_id] for example_id in factors.example_ids])
    drawn = max(1, round(TOP_SHARE * len(labels)))
    for number in range(factors.rank):
        ends = _both_ends(factors.example_loadings[:, number], drawn)
        for end, order in ends.items():
            if order:
                lines += _domain_lines(labels, labels[order], {"component": number + 1, "end": end})
    if lines:
        corrected = stats.false_discovery_control([line["p"] for line in lines], method="bh")
        for line, q in zip(lines, corrected.tolist(), strict=True):
            line["q"] = q
    return lines


def _domain_lines(
    labels: np.ndarray, drawn: np.ndarray, place: Mapping[str, Any]
) -> list[dict[str, Any]]:
    lines = []
    for domain, total in zip(*np.unique(labels, return_counts=True), strict=True):
        count = int((drawn == domain).sum())
        expected = len(drawn) * int(total) / len(labels)
        p = float(stats.hypergeom.sf(count - 1, len(labels), int(total), len(drawn)))
        line = {"domain": str(domain), "examples": count, "drawn": len(drawn)}
        lines.append({**place, **line, "expected": expected, "p": p})
    return lines


@dataclass(frozen=True)
class TaskTree:
    """Which tasks make a model forget the same examples: average linkage of the rows of Z.

    The distance of two tasks is 1 minus Pearson's correlation of their rows.

    Attributes
    ----------
    merges
        scipy's linkage matrix (M - 1, 4): two nodes, their distance, and the number of tasks.
    order
        Tasks in the order of the leaves.
    """

    tasks: list[str]
    merges: np.ndarray
    order: list[str]

    def records(self) -> list[dict[str, Any]]:
        """Lines of task_tree.csv: one node each, first the tasks and then the merges in order."""
        lines: list[dict[str, Any]] = []
        for node, task in enumerate(self.tasks):
            lines.append({"node": node, "task": task, "tasks": 1, "distance": 0.0})
        for node, (first, second, distance, count) in enumerate(self.merges, start=len(self.tasks)):
            nodes = {"node": node, "first": int(first), "second": int(second)}
            lines.append(nodes | {"task": "", "tasks": int(count), "distance": float(distance)})
        return lines


def grow_task_tree(z: Matrix) -> TaskTree:
    """Joins the tasks of the complete part of Z, the most alike first.

    The correlation with a constant row counts as 0.
    """
    part = complete_part(z)
    if len(part.tasks) < 2 or len(part.example_ids) < 2:
        return TaskTree(tasks=part.tasks, merges=np.zeros((0, 4)), order=part.tasks)
    centred = part.values - part.values.mean(axis=1, keepdims=True, dtype=np.float64)
    sizes = np.linalg.norm(centred, axis=1, keepdims=True)
    units = np.divide(centred, sizes, out=np.zeros_like(centred), where=sizes > 0)
    distances = 1 - np.clip(units @ units.T, -1, 1)
    np.fill_diagonal(distances, 0)
    merges = hierarchy.linkage(
        squareform(distances, checks=False),
        method="average",
        optimal_ordering=len(part.tasks) <= MOST_ORDERED,
    )
    leaves: Sequence[int] = hierarchy.leaves_list(merges)
    return TaskTree(part.tasks, merges, [part.tasks[leaf] for leaf in leaves])
