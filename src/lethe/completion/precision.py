"""The precision to expect, by number of probes and of training tasks."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lethe.completion.gaussian import Gaussian
from lethe.completion.probes import random_probes
from lethe.completion.scores import METRICS, Truth
from lethe.completion.splits import names_in_split
from lethe.config.task_table import Task
from lethe.errors import LetheError
from lethe.matrix.forgetting_matrix import Matrix

# With fewer training tasks none can be left out and predicted from others.
FEWEST_TASKS = 3
# A curve of precision needs no more examples than this.
LARGEST_COLUMNS = 20_000
# With more training tasks, this many of them are left out, drawn at random.
LARGEST_LEFT_OUT = 64


def precision_curve(
    train: np.ndarray,
    probes: Sequence[int],
    training_tasks: Sequence[int] | None = None,
    *,
    seeds: Sequence[int] = range(3),
) -> list[dict[str, Any]]:
    """The precision to expect on an unseen task, from the training rows alone.

    Every training row, or `LARGEST_LEFT_OUT` of more rows, is left out in turn. It is predicted by
    `gaussian` from random probes and from so many of the other rows, drawn at random for each seed.

    Parameters
    ----------
    train
        Training rows (M, N) of Z in nats, NaN where unknown.
    probes
        Numbers of probes.
    training_tasks
        Numbers of training tasks, each below M; by default M - 1.

    Returns
    -------
    One dict per number of training tasks and probes: `training_tasks`, `k`, and means over tasks
    and seeds of `top_10_percent` (share of the tenth that is most forgotten that is in the
    predicted tenth; chance gives .1), `column_mean_top_10_percent` (the same for the mean of the
    training rows, which needs no probe), `task_mean_error` (absolute error of the task's mean in
    nats) and `rmse` in nats, over the unprobed examples.

    Raises
    ------
    ValueError
        If there are fewer than three rows, or a number of training tasks is not below M.
    """
    rows = np.asarray(train, dtype=np.float64)
    tasks = len(rows)
    counts = [tasks - 1] if training_tasks is None else list(training_tasks)
    if tasks < FEWEST_TASKS:
        raise ValueError(f"{tasks} training tasks; a curve of precision needs at least 3")
    if min(counts) < 1 or max(counts) >= tasks:
        raise ValueError(f"training_tasks {counts}; each must be from 1 to {tasks - 1}")
    left_out = np.arange(tasks)
    if tasks > LARGEST_LEFT_OUT:
        left_out = np.sort(np.random.default_rng(73).choice(tasks, LARGEST_LEFT_OUT, False))
    lines = []
    for count in counts:
        scores: dict[int, list[list[float]]] = {k: [] for k in probes}
        for row in left_out:
            others = np.delete(np.arange(tasks), row)
            for seed in seeds:
                order = np.random.default_rng([seed, row, 71]).permutation(others)
                method = Gaussian().fit(rows[np.sort(order[:count])])
                for k in probes:
                    scores[k].append(_score(method, rows[row], k=k, seed=seed))
        for k in probes:
            top, of_mean, error, rmse = np.mean(scores[k], axis=0).tolist()
            lines.append(
                {
                    "training_tasks": count,
                    "k": k,
                    "top_10_percent": top,
                    "column_mean_top_10_percent": of_mean,
                    "task_mean_error": error,
                    "rmse": rmse,
                }
            )
    return lines


def curve_of_table(
    matrix: Matrix,
    tasks: Mapping[str, Task],
    probes: Sequence[int],
    training_tasks: Sequence[int],
) -> list[dict[str, Any]]:
    """The curve of the training tasks of a table; the lines of precision.csv.

    Numbers of training tasks that the table does not have are left out, and the number of all
    others is added. Tasks for which fewer than two examples were measured are left out. At most
    `LARGEST_COLUMNS` examples, drawn at random, stand for a larger Z.

    Raises
    ------
    LetheError
        If fewer than three training tasks are left.
    """
    names = names_in_split(tasks, "train")
    if len(names) < FEWEST_TASKS:
        raise LetheError(
            f"completion.precision_tasks: the task table has {len(names)} training tasks; the "
            f"curve of precision needs at least {FEWEST_TASKS}. Add training tasks, or leave the "
            "setting out"
        )
    train = matrix.values[matrix.rows(names)]
    examples = train.shape[1]
    if examples > LARGEST_COLUMNS:
        rng = np.random.default_rng(67)
        train = train[:, np.sort(rng.choice(examples, LARGEST_COLUMNS, replace=False))]
    # A row needs one example to probe and one to predict.
    train = train[np.isfinite(train).sum(axis=1) >= 2]
    if len(train) < FEWEST_TASKS:
        raise LetheError(
            f"completion.precision_tasks: two examples or more were measured for {len(train)} "
            f"training tasks only; the curve of precision needs at least {FEWEST_TASKS} such "
            "tasks. Measure more of Z, or leave the setting out"
        )
    largest = len(train) - 1
    counts = sorted({count for count in training_tasks if count < largest} | {largest})
    return precision_curve(train, probes, counts)


def _score(method: Gaussian, row: np.ndarray, k: int, seed: int) -> list[float]:
    """The four scores of one row (N,) that was left out."""
    observed = np.isfinite(row)
    index = random_probes(len(row), min(k, int(observed.sum()) - 1), seed, allowed=observed)
    hidden = observed.copy()
    hidden[index] = False
    truth = Truth(row[None, hidden], threshold=0.0)
    predicted = method.predict(index, row[index])[None, hidden]
    scores = dict(zip(METRICS, truth.score(predicted)[0], strict=True))
    means = method.rows_.mean(axis=0)[None, hidden]
    of_mean = dict(zip(METRICS, truth.score(means)[0], strict=True))
    return [
        float(scores["top_10_percent"]),
        float(of_mean["top_10_percent"]),
        float(abs(predicted.mean() - truth.values.mean())),
        float(scores["rmse"]),
    ]
