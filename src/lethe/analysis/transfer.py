"""Across models: rows of a target model from a source model's Z and a few rows of its own.

Meant for a small source and a large target: all of the source's rows are known, that of the task
in question too, and of the target a few rows and, at most, a few probes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from scipy import stats

from lethe.completion.gaussian import Gaussian
from lethe.completion.probes import random_probes
from lethe.matrix.forgetting_matrix import Matrix
from lethe.statistics import bootstrap_interval


@dataclass(frozen=True)
class Case:
    """What is known before a task's row of the target model is predicted, in nats, no NaN.

    `own` (m, N) rows of the target, `twins` (m, N) rows of the source for the same tasks, `others`
    (p, N) further rows of the source, `row` (N,) the source's row of the task in question.
    """

    own: np.ndarray
    twins: np.ndarray
    others: np.ndarray
    row: np.ndarray


def align(source: Matrix, target: Matrix) -> tuple[Matrix, Matrix]:
    """Both matrices on the tasks (by name) and examples (by id) they share, in target's order.

    Examples with an unknown cell in either are left out.

    Raises
    ------
    ValueError
        If no task or no example is left.
    """
    known = set(source.tasks), set(source.example_ids)
    tasks = [task for task in target.tasks if task in known[0]]
    ids = [name for name in target.example_ids if name in known[1]]
    values = [_part(z, tasks, ids) for z in (source, target)]
    complete = np.isfinite(values).all(axis=(0, 1)) if tasks and ids else np.zeros(0, dtype=bool)
    if not complete.any():
        raise ValueError(
            f"the models share {len(tasks)} tasks and {len(ids)} examples; none is known in both"
        )
    ids = [name for name, kept in zip(ids, complete, strict=True) if kept]
    first, second = (Matrix(part[:, complete], tasks, ids) for part in values)
    return first, second


def _part(z: Matrix, tasks: list[str], ids: list[str]) -> np.ndarray:
    place = {name: column for column, name in enumerate(z.example_ids)}
    columns = np.array([place[name] for name in ids], dtype=int)
    return z.values[np.ix_(z.rows(tasks), columns)].astype(np.float64)


def own(case: Case, index: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The target's own rows alone: Gaussian completion, the source left out.

    Without probes that is the own rows' mean, example by example.
    """
    return Gaussian().fit(case.own).predict(index, values)


def mapped_row(case: Case, index: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The source's row of the task, moved to the target example by example, then by the probes.

    Offset and scale of the whole row are drawn towards 0 and 1 by how much they vary over the own
    tasks, each mapped without itself (Bayesian linear regression).
    """
    mapped = mapping(case.own, case.twins)(case.row)
    return _adjusted(mapped, index, values, _left_out(case))


def weights(case: Case, index: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Which of the own tasks the task is like, learned in the source, applied in the target.

    The row is a combination of the twins in the source (least squares, off the mean row); the
    same combination of the target's own rows is the prediction. Needs no shared examples.
    """
    own_mean, twin_mean = case.own.mean(axis=0), case.twins.mean(axis=0)
    off, target = case.twins - twin_mean, case.row - twin_mean
    gram = off @ off.T
    ridge = 0.1 * np.trace(gram) / len(gram)
    found = np.linalg.solve(gram + max(ridge, 1e-12) * np.eye(len(gram)), off @ target)
    predicted = own_mean + found @ (case.own - own_mean)
    return _adjusted(predicted, index, values, [])


def pooled(case: Case, index: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Gaussian completion on the own rows and on every row of the source, mapped to the target."""
    move = mapping(case.own, case.twins)
    rows = [case.own, move(case.others), move(case.row)[None]]
    return Gaussian().fit(np.concatenate(rows)).predict(index, values)


METHODS: dict[str, Callable[[Case, np.ndarray, np.ndarray], np.ndarray]] = {
    "own": own,
    "mapped_row": mapped_row,
    "weights": weights,
    "pooled": pooled,
}
# What needs no probe of the target on the new task, that is, no fine-tune of it; `own` is what the
# source has to beat there as well.
WITHOUT_PROBES = ("own", "mapped_row", "weights")


def mapping(target: np.ndarray, source: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """From rows of the source to rows of the target, learned on tasks (m, N) of both.

    Per example an offset, shrunk as if one more task had none; one scale for all, by least
    squares off the examples' means.
    """
    target_mean, source_mean = target.mean(axis=0), source.mean(axis=0)
    off = source - source_mean
    squares = np.square(off).sum()
    scale = float((off * (target - target_mean)).sum() / squares) if squares > 0 else 1.0
    level = float(target_mean.mean() - scale * source_mean.mean())
    offsets = target_mean - scale * source_mean - level
    kept = level + offsets * len(target) / (len(target) + 1)
    return lambda rows: kept + scale * rows


def _left_out(case: Case) -> list[tuple[np.ndarray, np.ndarray]]:
    """(mapped, true) rows of each own task, mapped as learned on the other own tasks."""
    found = []
    for row in range(len(case.own) if len(case.own) > 1 else 0):
        move = mapping(np.delete(case.own, row, axis=0), np.delete(case.twins, row, axis=0))
        found.append((move(case.twins[row]), case.own[row]))
    return found


def _adjusted(
    predicted: np.ndarray,
    index: np.ndarray,
    values: np.ndarray,
    examples: list[tuple[np.ndarray, np.ndarray]],
) -> np.ndarray:
    """Offset and scale from the probes; their spread from examples, (predicted, true) rows.

    As if one more example had moved by the prediction's own spread: a few that moved little must
    not forbid the next to move.
    """
    if not len(index):
        return predicted
    centre, spread = predicted.mean(), max(float(predicted.std()), 1e-12)
    design = np.stack([np.ones_like(predicted), (predicted - centre) / spread], axis=1)
    fits = np.array([_line(*pair) for pair in examples]).reshape(-1, 3)
    moved = np.square(fits[:, :2]).sum(axis=0) + np.square(spread)
    prior = np.sqrt(moved / (len(fits) + 1))
    noise = max(float(np.sqrt(fits[:, 2].mean())), 1e-12) if len(fits) else spread
    probed, missed = design[index] * prior / noise, (values - predicted[index]) / noise
    solved = np.linalg.solve(probed.T @ probed + np.eye(2), probed.T @ missed)
    return predicted + design @ (solved * prior)


def _line(predicted: np.ndarray, true: np.ndarray) -> tuple[float, float, float]:
    """Offset at the mean, change of scale in units of the prediction's spread, left variance."""
    spread = max(float(predicted.std()), 1e-12)
    standard, missed = (predicted - predicted.mean()) / spread, true - predicted
    offset, slope = missed.mean(), (standard * missed).mean()
    return float(offset), float(slope), float(np.square(missed - offset - slope * standard).mean())


def evaluate(
    matrices: Mapping[str, Matrix],
    tasks: Mapping[str, tuple[str, str]],
    own_rows: Sequence[int],
    probes: Sequence[int],
    seeds: Sequence[int],
) -> list[dict]:
    """Scores every method on every ordered pair of models; lines of transfer.csv.

    Own rows are drawn from the training tasks, the same for all methods; test tasks are
    predicted. k = 0 stands for no probe at all. RMSE (nats, pooled over tasks) and Spearman, over
    unprobed cells; seed `all` is the mean over seeds with a 95 percent bootstrap interval over
    test tasks. Numbers of own rows that the task table cannot give are left out.

    Parameters
    ----------
    tasks
        task -> (group, split).
    """
    records = []
    for source, target in permutations(matrices, 2):
        pair = align(matrices[source], matrices[target])
        splits = {task: tasks[task][1] for task in pair[0].tasks if task in tasks}
        train = [task for task, split in splits.items() if split == "train"]
        test = [task for task, split in splits.items() if split == "test"]
        for count in [count for count in own_rows if count <= len(train)]:
            for k in [0, *(k for k in probes if k < len(pair[0].example_ids))]:
                head = {"source": source, "target": target, "own_rows": count, "k": k}
                for method in METHODS if k else WITHOUT_PROBES:
                    scores = [
                        list(_scores(pair, train, test, method, count, k, seed)) for seed in seeds
                    ]
                    records += _lines({**head, "method": method}, np.array(scores), seeds)
    return records


def _scores(
    pair: tuple[Matrix, Matrix],
    train: list[str],
    test: list[str],
    method: str,
    count: int,
    k: int,
    seed: int,
) -> Iterator[tuple[float, float]]:
    """Mean squared error and Spearman of each test task."""
    source, target = pair
    drawn = np.random.default_rng([seed, 37]).permutation(len(train))
    kept, rest = ([train[i] for i in part] for part in (drawn[:count], drawn[count:]))
    rows = target.values[target.rows(kept)], source.values[source.rows(kept)]
    others = source.values[source.rows(rest)]
    for task in test:
        row, truth = source.values[source.rows([task])[0]], target.values[target.rows([task])[0]]
        index = random_probes(len(truth), k, seed)
        predicted = METHODS[method](Case(*rows, others, row), index, truth[index])
        hidden = np.setdiff1d(np.arange(len(truth)), index)
        yield _score(truth[hidden], predicted[hidden])


def _score(truth: np.ndarray, predicted: np.ndarray) -> tuple[float, float]:
    flat = np.ptp(predicted) == 0 or np.ptp(truth) == 0
    order = 0.0 if flat else float(stats.spearmanr(truth, predicted).statistic)
    return float(np.square(truth - predicted).mean()), order


def _lines(head: dict, scores: np.ndarray, seeds: Sequence[int]) -> Iterator[dict]:
    """Lines of one method from its scores (seeds, tasks, 2)."""
    for place, (metric, finish) in enumerate({"rmse": np.sqrt, "spearman": float}.items()):
        by_seed = [finish(line.mean()) for line in scores[:, :, place]]
        for seed, value in zip(seeds, by_seed, strict=True):
            yield {**head, "seed": str(seed), "metric": metric, "value": float(value)}
        low, high = map(finish, bootstrap_interval(scores[:, :, place].mean(axis=0)))
        value = float(np.mean(by_seed))
        whole = {"seed": "all", "metric": metric, "value": value}
        yield {**head, **whole, "low": float(low), "high": float(high)}


def table(records: Sequence[Mapping]) -> list[dict]:
    """Lines for a report: RMSE and interval of every method beside each other.

    Parameters
    ----------
    records
        Lines of transfer.csv, as dicts.

    Returns
    -------
    One dict for each source, target, own_rows, k; for each method `<method>`, `<method>_low`,
    `<method>_high`, NaN where it was not made; `best`, the method of least RMSE.
    """
    found: dict[tuple, dict] = {}
    for line in records:
        if (str(line["seed"]), line["metric"]) != ("all", "rmse"):
            continue
        head = {key: line[key] for key in ("source", "target", "own_rows", "k")}
        entry = found.setdefault(tuple(head.values()), head)
        entry[line["method"]] = line["value"]
        entry |= {f"{line['method']}_{end}": line[end] for end in ("low", "high")}
    for entry in found.values():
        made = [method for method in METHODS if method in entry]
        entry["best"] = min(made, key=entry.__getitem__)
        for key in (f"{method}{end}" for method in METHODS for end in ("", "_low", "_high")):
            entry.setdefault(key, float("nan"))
    return list(found.values())
