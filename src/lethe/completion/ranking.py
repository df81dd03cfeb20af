"""How well forgetting is ranked from a few probes, beside the mean of the other tasks' rows."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from lethe.completion import make
from lethe.completion.probes import choose_probes

# With fewer training tasks, probes added nothing to the mean of the rows (docs/lab/completion.md).
ENOUGH_TASKS = 5


@dataclass(frozen=True)
class RankingCheck:
    """Spearman's correlation of predicted and measured forgetting, task by task (tasks,).

    Each task is predicted from the others. Probed examples do not count.
    """

    predicted: np.ndarray
    mean_of_rows: np.ndarray

    def sentence(self) -> str:
        """The two mean correlations in words."""
        tasks = len(self.predicted)
        return (
            f"Each of the {tasks} tasks was predicted from the other {tasks - 1}: the predictor "
            f"ranks the examples with a correlation of {np.nanmean(self.predicted):.2f} "
            f"(Spearman), the mean of the other tasks' rows with "
            f"{np.nanmean(self.mean_of_rows):.2f}."
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
    for number, row in enumerate(values):
        others = np.delete(values, number, axis=0)
        index = choose_probes(others, probes, "a_optimal", seed=seed)
        hidden = np.setdiff1d(np.arange(len(row)), index)
        fitted = make(method, {method: options or {}}).fit(others)
        prediction = fitted.predict(index, row[index])
        predicted.append(_correlation(prediction[hidden], row[hidden]))
        means.append(_correlation(others.mean(axis=0)[hidden], row[hidden]))
    return RankingCheck(predicted=np.array(predicted), mean_of_rows=np.array(means))


def _correlation(prediction: np.ndarray, row: np.ndarray) -> float:
    return float(stats.spearmanr(prediction, row).statistic)
