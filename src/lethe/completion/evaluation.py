"""How well unseen tasks are predicted: splits, metrics and their spread (paper, section 4)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from lethe.completion import make
from lethe.completion.probes import random_probes
from lethe.matrix import Matrix
from lethe.statistics import bootstrap_interval

METRICS = ("rmse", "mae", "spearman", "top_1_percent", "top_10_percent", "f1", "auc")


@dataclass(frozen=True)
class Split:
    """Row numbers of Z to learn from and to predict; `name` is what it asks about."""

    name: str
    train: np.ndarray
    test: np.ndarray


def splits(matrix: Matrix, tasks: Mapping[str, tuple[str, str]]) -> list[Split]:
    """In-domain: the task table's train and test. Out-of-domain: each group left out in turn.

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


def metrics(truth: np.ndarray, predicted: np.ndarray, threshold: float) -> dict[str, float]:
    """Scores of one predicted row over the cells given, both (n,), no NaN.

    RMSE and MAE in nats; Spearman; the share of the 1 and 10 percent most forgotten examples
    that are among the 1 and 10 percent predicted highest; F1 and AUC of 'forgetting above the
    threshold' (NaN where all or no examples are).
    """
    error = predicted - truth
    positive = truth > threshold
    return {
        "rmse": float(np.sqrt(np.square(error).mean())),
        "mae": float(np.abs(error).mean()),
        "spearman": _spearman(truth, predicted),
        "top_1_percent": _overlap(truth, predicted, 0.01),
        "top_10_percent": _overlap(truth, predicted, 0.1),
        "f1": _f1(positive, predicted > threshold),
        "auc": _auc(positive, predicted),
    }


def _spearman(truth: np.ndarray, predicted: np.ndarray) -> float:
    # A constant prediction orders nothing, which is no correlation, not an undefined one.
    if np.ptp(predicted) == 0 or np.ptp(truth) == 0:
        return 0.0
    return float(stats.spearmanr(truth, predicted).statistic)


def _overlap(truth: np.ndarray, predicted: np.ndarray, share: float) -> float:
    count = max(1, round(share * len(truth)))
    true_top = np.argsort(-truth, kind="stable")[:count]
    predicted_top = np.argsort(-predicted, kind="stable")[:count]
    return len(np.intersect1d(true_top, predicted_top)) / count


def _f1(positive: np.ndarray, called: np.ndarray) -> float:
    if not positive.any():
        return float("nan")
    hits = (positive & called).sum()
    return float(2 * hits / (positive.sum() + called.sum()))


def _auc(positive: np.ndarray, predicted: np.ndarray) -> float:
    count = positive.sum()
    if count in (0, len(positive)):
        return float("nan")
    ranks = stats.rankdata(predicted)[positive].sum()
    return float((ranks - count * (count + 1) / 2) / (count * (len(positive) - count)))


def evaluate(
    matrix: Matrix,
    tasks: Mapping[str, tuple[str, str]],
    methods: Sequence[str],
    probes: Sequence[int],
    seeds: Sequence[int],
    threshold: float,
    options: Mapping[str, dict] | None = None,
) -> list[dict]:
    """Scores every method; lines of completion.csv.

    One line for each split, method, k, probe seed and metric: the mean over test tasks (for RMSE
    the root of the mean square, which is pooling their cells) over unprobed cells. Lines of seed
    `all` give the mean over seeds with a 95 percent bootstrap interval over tasks, and
    `sd_over_seeds` beside each.
    """
    records = []
    names = dict.fromkeys(split.name for split in splits(matrix, tasks))
    for name in names:
        chosen = [split for split in splits(matrix, tasks) if split.name == name]
        for method in methods:
            for k, scores in _scores(
                matrix, chosen, method, probes, seeds, threshold, dict(options or {})
            ):
                head = {"split": name, "method": method, "k": k, "probes": "random"}
                records += _summary(scores, seeds, head)
    return records


def _scores(
    matrix: Matrix,
    chosen: list[Split],
    method: str,
    probes: Sequence[int],
    seeds: Sequence[int],
    threshold: float,
    options: dict,
) -> Iterator[tuple[int, np.ndarray]]:
    """For each k the scores (seeds, test tasks, metrics)."""
    fitted = [make(method, options).fit(matrix.values[split.train]) for split in chosen]
    for k in probes:
        scores = [
            [
                _score_row(completer, matrix.values[row], k, seed, threshold)
                for split, completer in zip(chosen, fitted, strict=True)
                for row in split.test
            ]
            for seed in seeds
        ]
        yield k, np.array(scores)


def _score_row(completer, truth: np.ndarray, k: int, seed: int, threshold: float) -> list[float]:
    known = np.isfinite(truth)
    # Something must stay hidden to be predicted.
    k = min(k, int(known.sum()) - 1)
    index = random_probes(len(truth), k, seed, known)
    predicted = completer.predict(index, truth[index])
    known[index] = False
    return list(metrics(truth[known], predicted[known], threshold).values())


def _summary(scores: np.ndarray, seeds: Sequence[int], head: dict) -> list[dict]:
    lines = []
    for place, metric in enumerate(METRICS):
        values = scores[:, :, place]
        by_seed = np.array([_mean(metric, line) for line in values])
        for seed, value in zip(seeds, by_seed, strict=True):
            lines.append({**head, "seed": str(seed), "metric": metric, "value": value})
        over_tasks = np.array([_mean(metric, line) for line in values.T])
        low, high = _interval(metric, over_tasks)
        lines.append(
            {
                **head,
                "seed": "all",
                "metric": metric,
                "value": float(by_seed.mean()),
                "low": low,
                "high": high,
                "sd_over_seeds": float(by_seed.std(ddof=1)) if len(seeds) > 1 else None,
            }
        )
    return lines


def _mean(metric: str, values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    if not len(known):
        return float("nan")
    return float(np.sqrt(np.square(known).mean()) if metric == "rmse" else known.mean())


def _interval(metric: str, values: np.ndarray) -> tuple[float, float]:
    if metric != "rmse":
        return bootstrap_interval(values)
    low, high = bootstrap_interval(np.square(values))
    return float(np.sqrt(low)), float(np.sqrt(high))


def predict_rows(
    matrix: Matrix,
    tasks: Mapping[str, tuple[str, str]],
    method: str,
    probes: int,
    seed: int,
    allowed: np.ndarray,
    options: Mapping[str, dict] | None = None,
) -> Matrix:
    """Predicted forgetting of every example for each test task, from `probes` of its own cells.

    Probes come from `allowed` (N,) columns only, so that nothing about held-out examples is ever
    known. A probed cell keeps what was measured there.
    """
    split = splits(matrix, tasks)[0]
    completer = make(method, dict(options or {})).fit(matrix.values[split.train])
    predicted = []
    for row in split.test:
        truth = matrix.values[row]
        index = random_probes(len(truth), probes, seed, allowed & np.isfinite(truth))
        line = completer.predict(index, truth[index])
        line[index] = truth[index]
        predicted.append(line)
    names = [matrix.tasks[row] for row in split.test]
    return Matrix(np.array(predicted, dtype=np.float32), names, matrix.example_ids)
