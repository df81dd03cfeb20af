"""How well forgetting is ranked from a few probes, beside the mean of the other tasks' rows."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from lethe.completion import make
from lethe.completion.probes import choose_probes
from lethe.completion.scores import METRICS, Truth

# With fewer training tasks, probes added nothing to the mean of the rows (docs/lab/completion.md).
ENOUGH_TASKS = 5


@dataclass(frozen=True)
class RankingCheck:
    """How well the order of forgetting is predicted, task by task (tasks,).

    `predicted` and `mean_of_rows` are Spearman's correlations with measured forgetting. `top_tenth`
    is the share of the most forgotten tenth of the examples that the predicted tenth holds. Each
    task is predicted from the others. Probed examples do not count.
    """

    predicted: np.ndarray
    mean_of_rows: np.ndarray
    top_tenth: np.ndarray

    @property
    def spearman(self) -> float:
        """Mean over tasks of the prediction's rank correlation."""
        return float(np.nanmean(self.predicted))

    @property
    def spearman_mean_of_rows(self) -> float:
        """Mean over tasks of the rank correlation of the other tasks' mean row."""
        return float(np.nanmean(self.mean_of_rows))

    @property
    def top_tenth_found(self) -> float:
        """Mean over tasks of the share of the most forgotten tenth that is predicted."""
        return float(np.nanmean(self.top_tenth))

    def sentence(self) -> str:
        """The two mean correlations in words."""
        tasks = len(self.predicted)
        return (
            f"Each of the {tasks} tasks was predicted from the other {tasks - 1}: the predictor "
            f"ranks the examples with a correlation of {self.spearman:.2f} "
            f"(Spearman), the mean of the other tasks' rows with "
            f"{self.spearman_mean_of_rows:.2f}. The predicted tenth holds "
            f"{100 * self.top_tenth_found:.0f} % of the tenth that is most forgotten "
            "(10 % by chance)."
        )


def check_ranking(
    values: np.ndarray,
    *,
    probes: int,
    method: str,
    options: dict[str, Any] | None = None,
    seed: int = 0,
) -> RankingCheck:
    """Predicts each row of Z from the other rows and its own probes.

    Parameters
    ----------
    values
        Forgetting (tasks, N) in nats, without missing values.
    probes
        Number of examples that are measured on the new task.

    Raises
    ------
    ValueError
        If there are fewer than three tasks.
    """
    if len(values) < 3:
        raise ValueError(f"{len(values)} tasks cannot be predicted from one another")
    predicted = []
    means = []
    tops = []
    for number, row in enumerate(values):
        others = np.delete(values, number, axis=0)
        index = choose_probes(others, probes, "a_optimal", seed=seed)
        hidden = np.setdiff1d(np.arange(len(row)), index)
        fitted = make(method, {method: options or {}}).fit(others)
        prediction = fitted.predict(index, row[index])
        predicted.append(_correlation(prediction[hidden], row[hidden]))
        means.append(_correlation(others.mean(axis=0)[hidden], row[hidden]))
        tops.append(_share_of_top_tenth(prediction[hidden], row[hidden]))
    return RankingCheck(
        predicted=np.array(predicted), mean_of_rows=np.array(means), top_tenth=np.array(tops)
    )


def expected_top_tenth(
    values: np.ndarray, index: np.ndarray, *, method: str, options: dict[str, Any] | None = None
) -> float:
    """Mean share of the most forgotten tenth of the examples that the predicted tenth holds.

    Each row of Z is predicted from the other rows and its own values at the probes. Probed and
    unmeasured examples do not count.

    Parameters
    ----------
    values
        Forgetting (tasks, N) in nats, NaN where unknown.
    index
        Columns (k,) of the probes.

    Returns
    -------
    The share, or NaN if there are fewer than three tasks or nothing is left to rank.
    """
    if len(values) < 3:
        return float("nan")
    shares = []
    for number, row in enumerate(values):
        hidden = np.isfinite(row)
        hidden[index] = False
        if not hidden.any():
            continue
        others = np.delete(values, number, axis=0)
        fitted = make(method, {method: options or {}}).fit(others)
        predicted = fitted.predict(index, row[index])
        shares.append(_share_of_top_tenth(predicted[hidden], row[hidden]))
    return float(np.mean(shares)) if shares else float("nan")


def _share_of_top_tenth(prediction: np.ndarray, row: np.ndarray) -> float:
    """Share of the most forgotten tenth of a row (n,) that the predicted tenth holds."""
    scores = Truth(row[None], threshold=0.0).score(prediction[None])[0]
    return float(scores[METRICS.index("top_10_percent")])


def _correlation(prediction: np.ndarray, row: np.ndarray) -> float:
    return float(stats.spearmanr(prediction, row).statistic)
