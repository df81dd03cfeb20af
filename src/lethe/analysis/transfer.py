"""Predicts rows of a target model from a source model's Z and a few rows of the target.

This is meant for a small source and a large target. All rows of the source are known, that of the
task in question too. Of the target, only a few rows and, at most, a few probes are known.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations

import numpy as np
from scipy import stats

from lethe.completion.gaussian import Gaussian
from lethe.completion.probes import random_probes
from lethe.completion.splits import names_in_split
from lethe.config.task_table import Task
from lethe.matrix.forgetting_matrix import Matrix
from lethe.statistics import bootstrap_interval

# How values of each metric are averaged over tasks: squares are averaged before their root.
FINISH: dict[str, Callable[[float], float]] = {"rmse": np.sqrt, "spearman": float}


@dataclass(frozen=True)
class Case:
    """All that is known before a task's row of the target is predicted, in nats, without NaN.

    `target_rows` (m, N) are rows of the target, `source_rows` (m, N) rows of the source for the
    same tasks, `other_source_rows` (p, N) further rows of the source, and `source_row` (N,) is
    the source's row of the task in question.

    `fitted` holds methods that do not depend on that task, by name. Cases of several tasks with
    the same known rows may share it, so that such a method is fitted once.
    """

    target_rows: np.ndarray
    source_rows: np.ndarray
    other_source_rows: np.ndarray
    source_row: np.ndarray
    fitted: dict[str, Gaussian] = field(default_factory=dict)


def align(source: Matrix, target: Matrix) -> tuple[Matrix, Matrix]:
    """Both matrices on the tasks (by name) and examples (by id) they share, in target's order.

    Examples with an unknown cell in either are left out.

    Raises
    ------
    ValueError
        If no task or no example remains.
    """
    source_tasks = set(source.tasks)
    source_ids = set(source.example_ids)
    tasks = [task for task in target.tasks if task in source_tasks]
    ids = [example_id for example_id in target.example_ids if example_id in source_ids]
    source_values = _select(source, tasks, ids)
    target_values = _select(target, tasks, ids)
    complete = np.zeros(0, dtype=bool)
    if tasks and ids:
        complete = np.isfinite([source_values, target_values]).all(axis=(0, 1))
    if not complete.any():
        raise ValueError(
            f"the models share {len(tasks)} tasks and {len(ids)} examples; none is known in both"
        )
    complete_ids = [ids[column] for column in np.flatnonzero(complete)]
    return (
        Matrix(values=source_values[:, complete], tasks=tasks, example_ids=complete_ids),
        Matrix(values=target_values[:, complete], tasks=tasks, example_ids=complete_ids),
    )


def _select(z: Matrix, tasks: list[str], ids: list[str]) -> np.ndarray:
    columns = {example_id: column for column, example_id in enumerate(z.example_ids)}
    index = np.array([columns[example_id] for example_id in ids], dtype=int)
    return z.values[np.ix_(z.rows(tasks), index)].astype(np.float64)


def predict_from_own_rows(case: Case, index: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Gaussian completion on the target's rows alone, without the source.

    Without probes it is the mean of these rows, example by example.
    """
    if "own" not in case.fitted:
        case.fitted["own"] = Gaussian().fit(case.target_rows)
    return case.fitted["own"].predict(index, values)


def predict_mapped_row(case: Case, index: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The source's row of the task, mapped to the target example by example, then by the probes.

    The prior of the complete row's offset and scale is centred at 0 and 1, as wide as both vary
    over the known tasks, each mapped without itself (Bayesian linear regression).
    """
    mapped = fit_mapping(case.target_rows, case.source_rows)(case.source_row)
    return _adjust(mapped, index=index, values=values, examples=_left_out(case))


def predict_by_weights(case: Case, index: np.ndarray, values: np.ndarray) -> np.ndarray:
    """A combination of known tasks, learned in the source and applied in the target.

    The task's row is a combination of the source's rows of the known tasks (least squares, minus
    the mean row). The same combination of the target's rows is the prediction. Needs no shared
    examples.
    """
    target_mean = case.target_rows.mean(axis=0)
    source_mean = case.source_rows.mean(axis=0)
    centred = case.source_rows - source_mean
    gram = centred @ centred.T
    ridge = 0.1 * np.trace(gram) / len(gram)
    penalised = gram + max(ridge, 1e-12) * np.eye(len(gram))
    weights = np.linalg.solve(penalised, centred @ (case.source_row - source_mean))
    predicted = target_mean + weights @ (case.target_rows - target_mean)
    return _adjust(predicted, index=index, values=values, examples=[])


def predict_pooled(case: Case, index: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Gaussian completion on the target's rows and all mapped rows of the source."""
    map_row = fit_mapping(case.target_rows, case.source_rows)
    rows = [case.target_rows, map_row(case.other_source_rows), map_row(case.source_row)[None]]
    return Gaussian().fit(np.concatenate(rows)).predict(index, values)


def predict_difference(case: Case, index: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Gaussian completion of the target's difference from the source (`Gaussian.fit` with `other`).

    With fewer than three rows of the target, this is Gaussian completion without the source.
    """
    if "difference" not in case.fitted:
        case.fitted["difference"] = Gaussian().fit(case.target_rows, other=case.source_rows)
    return case.fitted["difference"].predict(index, values, other=case.source_row)


METHODS: dict[str, Callable[[Case, np.ndarray, np.ndarray], np.ndarray]] = {
    "own": predict_from_own_rows,
    "mapped_row": predict_mapped_row,
    "weights": predict_by_weights,
    "pooled": predict_pooled,
    "difference": predict_difference,
}
# These need no probe of the target on the new task, hence no fine-tune of it. `own` is among them
# as the baseline that the source has to beat.
WITHOUT_PROBES = ("own", "mapped_row", "weights", "difference")


def fit_mapping(target: np.ndarray, source: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Learns to map rows of the source to rows of the target, from tasks (m, N) of both.

    There is one offset per example, shrunk as if one more task had none, and one scale for all,
    by least squares around the examples' means.
    """
    target_mean = target.mean(axis=0)
    source_mean = source.mean(axis=0)
    centred = source - source_mean
    squares = np.square(centred).sum()
    scale = float((centred * (target - target_mean)).sum() / squares) if squares > 0 else 1.0
    level = float(target_mean.mean() - scale * source_mean.mean())
    offsets = target_mean - scale * source_mean - level
    shrunk_offsets = level + offsets * len(target) / (len(target) + 1)
    return lambda rows: shrunk_offsets + scale * rows


def _left_out(case: Case) -> list[tuple[np.ndarray, np.ndarray]]:
    """(mapped, true) rows of each known task, mapped as learned on the other known tasks."""
    if len(case.target_rows) < 2:
        return []
    pairs = []
    for row, true in enumerate(case.target_rows):
        others = np.delete(case.target_rows, row, axis=0)
        map_row = fit_mapping(others, np.delete(case.source_rows, row, axis=0))
        pairs.append((map_row(case.source_rows[row]), true))
    return pairs


def _adjust(
    predicted: np.ndarray,
    index: np.ndarray,
    values: np.ndarray,
    examples: Sequence[tuple[np.ndarray, np.ndarray]],
) -> np.ndarray:
    """Adds an offset and a scale, estimated from the probes, to a predicted row (N,).

    Their prior is as wide as over `examples`, (predicted, true) rows, and one further example
    that differs by the prediction's own spread: otherwise a few examples with small differences
    would exclude a larger one.
    """
    if not len(index):
        return predicted
    spread = max(float(predicted.std()), 1e-12)
    standardised = (predicted - predicted.mean()) / spread
    design = np.stack([np.ones_like(predicted), standardised], axis=1)
    fits = np.array([_fit_line(*pair) for pair in examples]).reshape(-1, 3)
    squares = np.square(fits[:, :2]).sum(axis=0) + np.square(spread)
    prior = np.sqrt(squares / (len(fits) + 1))
    noise = max(float(np.sqrt(fits[:, 2].mean())), 1e-12) if len(fits) else spread
    features = design[index] * prior / noise
    residuals = (values - predicted[index]) / noise
    solved = np.linalg.solve(features.T @ features + np.eye(2), features.T @ residuals)
    return predicted + design @ (solved * prior)


def _fit_line(predicted: np.ndarray, true: np.ndarray) -> tuple[float, float, float]:
    """Offset at the mean, change of scale per spread of the prediction, remaining variance."""
    spread = max(float(predicted.std()), 1e-12)
    standardised = (predicted - predicted.mean()) / spread
    residuals = true - predicted
    offset = residuals.mean()
    slope = (standardised * residuals).mean()
    remaining = np.square(residuals - offset - slope * standardised).mean()
    return float(offset), float(slope), float(remaining)


def evaluate_transfer(
    matrices: Mapping[str, Matrix],
    tasks: Mapping[str, Task],
    own_rows: Sequence[int],
    probes: Sequence[int],
    seeds: Sequence[int],
) -> list[dict]:
    """Scores every method on every ordered pair of models; the lines of transfer.csv.

    The target's known rows are drawn from the training tasks, the same for all methods; test
    tasks are predicted. k = 0 stands for no probe at all. RMSE (nats, pooled over tasks) and
    Spearman are computed over unprobed cells. Seed `all` is the mean over seeds with a 95 percent
    bootstrap interval over test tasks. Numbers of rows above that of training tasks are left out.

    Parameters
    ----------
    matrices
        Z of each model.
    own_rows
        How many rows of the target are known.
    """
    records = []
    for source_name, target_name in permutations(matrices, 2):
        source, target = align(matrices[source_name], matrices[target_name])
        shared = {name: tasks[name] for name in source.tasks if name in tasks}
        train = names_in_split(shared, "train")
        test = names_in_split(shared, "test")
        all_k = [0] + [k for k in probes if k < len(source.example_ids)]
        for count in own_rows:
            if count > len(train):
                continue
            for k in all_k:
                for method in METHODS if k else WITHOUT_PROBES:
                    scores = []
                    for seed in seeds:
                        draw = _Draw(train=train, test=test, own_rows=count, k=k, seed=seed)
                        scores.append(_score_tasks(source, target, draw, method=method))
                    head = {
                        "source": source_name,
                        "target": target_name,
                        "own_rows": count,
                        "k": k,
                        "method": method,
                    }
                    records += _lines(head, np.array(scores), seeds)
    return records


@dataclass(frozen=True, kw_only=True)
class _Draw:
    train: list[str]
    test: list[str]
    own_rows: int
    k: int
    seed: int


def _score_tasks(
    source: Matrix, target: Matrix, draw: _Draw, method: str
) -> list[tuple[float, float]]:
    """Mean squared error and Spearman of each test task."""
    order = np.random.default_rng([draw.seed, 37]).permutation(len(draw.train))
    known_tasks = [draw.train[i] for i in order[: draw.own_rows]]
    others = [draw.train[i] for i in order[draw.own_rows :]]
    scores = []
    fitted: dict[str, Gaussian] = {}
    for task in draw.test:
        truth = target.values[target.rows([task])[0]]
        case = Case(
            target_rows=target.values[target.rows(known_tasks)],
            source_rows=source.values[source.rows(known_tasks)],
            other_source_rows=source.values[source.rows(others)],
            source_row=source.values[source.rows([task])[0]],
            fitted=fitted,
        )
        index = random_probes(len(truth), draw.k, draw.seed)
        predicted = METHODS[method](case, index, truth[index])
        hidden = np.setdiff1d(np.arange(len(truth)), index)
        scores.append(_score_task(truth[hidden], predicted[hidden]))
    return scores


def _score_task(truth: np.ndarray, predicted: np.ndarray) -> tuple[float, float]:
    constant = np.ptp(predicted) == 0 or np.ptp(truth) == 0
    spearman = 0.0 if constant else float(stats.spearmanr(truth, predicted).statistic)
    return float(np.square(truth - predicted).mean()), spearman


def _lines(head: dict, scores: np.ndarray, seeds: Sequence[int]) -> Iterator[dict]:
    """Lines of one method from its scores (seeds, tasks, 2)."""
    for column, (metric, finish) in enumerate(FINISH.items()):
        values = scores[:, :, column]
        by_seed = [finish(line.mean()) for line in values]
        for seed, value in zip(seeds, by_seed, strict=True):
            yield {**head, "seed": str(seed), "metric": metric, "value": float(value)}
        low, high = bootstrap_interval(values.mean(axis=0))
        yield {
            **head,
            "seed": "all",
            "metric": metric,
            "value": float(np.mean(by_seed)),
            "low": float(finish(low)),
            "high": float(finish(high)),
        }


def transfer_table(records: Sequence[Mapping]) -> list[dict]:
    """Lines for a report: RMSE and interval of every method side by side.

    Parameters
    ----------
    records
        Lines of transfer.csv, as dicts.

    Returns
    -------
    One dict for each source, target, own_rows, k. It holds, for each method, `<method>`,
    `<method>_low` and `<method>_high`, NaN if the method was not run; and `best`, the method of
    least RMSE.
    """
    entries: dict[tuple, dict] = {}
    for line in records:
        if str(line["seed"]) != "all" or line["metric"] != "rmse":
            continue
        head = {key: line[key] for key in ("source", "target", "own_rows", "k")}
        entry = entries.setdefault(tuple(head.values()), head)
        method = line["method"]
        entry[method] = line["value"]
        entry[f"{method}_low"] = line["low"]
        entry[f"{method}_high"] = line["high"]
    for entry in entries.values():
        present = [method for method in METHODS if method in entry]
        entry["best"] = min(present, key=entry.__getitem__)
        for method in METHODS:
            for end in ("", "_low", "_high"):
                entry.setdefault(f"{method}{end}", float("nan"))
    return list(entries.values())
