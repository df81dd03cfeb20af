"""Stack for a Z of 0s and 1s: logistic factor analysis, the Gaussian method and the task's rate."""

import numpy as np
from scipy.special import logit

from lethe.completion.completer import Completer
from lethe.completion.foldin import JUDGED_TASKS, MANY_TASKS, sample_columns
from lethe.completion.gaussian import Gaussian
from lethe.completion.logistic import (
    LogisticFactorAnalysis,
    bounded_probability,
    check_binary,
    fit_logistic,
)

# Penalty on each weight. Penalties up to 300 gave the same errors (docs/lab/exact-match.md).
RIDGE = 1.0
# The Gaussian method predicts numbers that may lie outside 0..1.
LEAST_PROBABILITY = 0.01
# Cells of an average task that are added to the task's rate at its probes.
RATE_CELLS = 2.0


class LogisticStack(Completer):
    """Combination of `logistic_fa`, `gaussian` and the new task's rate, in logits.

    logit p = f + w0 + w1 f + w2 g + w3 r, where f is the logit of `logistic_fa`, g that of
    `gaussian` (cut to .01 to .99) and r the log odds of the task's rate at its probes, less those
    of the training tasks at the same probes. The weights w are a logistic ridge regression on the
    cells of training tasks that were left out in turn and predicted from random probes. They are
    fitted for each number of probes when it is first needed. Stacking: Wolpert (1992), "Stacked
    generalization", Neural Networks 5.

    Parameters
    ----------
    rank
        Number of factors of `logistic_fa`.
    """

    def __init__(self, rank: int = 5):
        self.rank = rank

    def _fit(self, values: np.ndarray, observed: np.ndarray) -> None:
        check_binary(values)
        self._rows = values
        self._parts = _Parts(values, self.rank)
        self._left_out_parts: dict[int, _Parts] = {}
        self._weights: dict[int, np.ndarray] = {}

    def weights(self, probes: int) -> np.ndarray:
        """Weights w0 to w3 for this number of probes; zeros with fewer than three tasks."""
        self._fit_weights(probes)
        return self._weights[probes]

    def _predict(self, index: np.ndarray, values: np.ndarray) -> np.ndarray:
        check_binary(values)
        weights = self.weights(len(index))
        predicted = []
        for row in values:
            features, base = self._parts.features(index, row)
            predicted.append(bounded_probability(base + features @ weights))
        return np.array(predicted)

    def _fit_weights(self, probes: int) -> None:
        """Fits the weights for this number of probes, unless they are fitted."""
        if probes in self._weights:
            return
        self._weights[probes] = np.zeros(4)
        rows = sample_columns(self._rows)
        if len(rows) < 3:
            return
        rng = np.random.default_rng([probes, 47])
        left_out = np.arange(len(rows))
        if len(rows) > MANY_TASKS:
            left_out = np.sort(rng.choice(len(rows), JUDGED_TASKS, replace=False))
        features = []
        base = []
        truths = []
        for number in left_out:
            truth = rows[number]
            order = rng.permutation(np.flatnonzero(np.isfinite(truth)))
            if len(order) < 2:
                continue
            # At least one cell stays unprobed, because probed cells cannot be judged.
            index, hidden = np.split(order, [min(probes, len(order) - 1)])
            if number not in self._left_out_parts:
                others = np.delete(rows, number, axis=0)
                self._left_out_parts[number] = _Parts(others, self.rank)
            of_task, base_of_task = self._left_out_parts[number].features(index, truth[index])
            features.append(of_task[hidden])
            base.append(base_of_task[hidden])
            truths.append(truth[hidden])
        if not truths:
            return
        design = np.concatenate(features)
        offsets = np.concatenate(base)
        truth = np.concatenate(truths)
        self._weights[probes] = fit_logistic(design, truth, base=offsets, ridge=RIDGE)


class _Parts:
    """The two methods, fitted on the same rows (M, N)."""

    def __init__(self, rows: np.ndarray, rank: int):
        self._factors = LogisticFactorAnalysis(rank).fit(rows)
        self._gaussian = Gaussian().fit(rows)
        observed = np.isfinite(rows)
        overall = float(rows[observed].mean())
        counts = observed.sum(axis=0)
        self._rates = (np.where(observed, rows, 0.0).sum(axis=0) + overall) / (counts + 1)

    def features(self, index: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Features (N, 4) of the regression and logits (N,) of the factor analysis."""
        base = _logit(self._factors.predict(index, values), least=1e-5)
        gaussian = _logit(self._gaussian.predict(index, values), least=LEAST_PROBABILITY)
        expected = float(self._rates[index].mean()) if len(index) else float(self._rates.mean())
        rate = (values.sum() + RATE_CELLS * expected) / (len(index) + RATE_CELLS)
        excess = _logit(np.array(rate), LEAST_PROBABILITY)
        excess = excess - _logit(np.array(expected), LEAST_PROBABILITY)
        ones = np.ones(len(base))
        return np.column_stack([ones, base, gaussian, float(excess) * ones]), base


def _logit(probabilities: np.ndarray, least: float) -> np.ndarray:
    """Log odds of probabilities cut to least .. 1 - least."""
    return logit(np.clip(probabilities, least, 1 - least))
