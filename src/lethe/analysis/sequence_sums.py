"""Predicts the forgetting of a sequence from the rows of its tasks learned alone.

Three predictions of the row after step t use only rows of single fine-tunes: their sum; the sum
times one factor; and a sum in which a task counts less the longer it is past (`fit_recency`). The
factor and the share are fitted on the other orders. A fourth prediction, `last_task`, is the row of
the step's task alone.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations
from typing import Any

import numpy as np
from scipy import stats

from lethe.completion import make
from lethe.completion.completer import Completer
from lethe.completion.probes import random_probes
from lethe.matrix.sequence_rows import MeasuredSequence
from lethe.statistics import bootstrap_interval

log = logging.getLogger(__name__)

# Resampled sets of upstream examples per interval of R2.
DRAWS = 1000
# Values of the remaining share per later task that are tried.
_SHARES = np.linspace(0, 1.2, 121)
SUMS = ("sum", "scaled_sum", "recency", "last_task")
# Draws of probes that a prediction is averaged over.
PROBE_SEEDS = 10
# Up to this number of orders, the p-value of a rank correlation counts all permutations.
EXACT_ORDERS = 7
# Halves of fewer orders have too few to rank. Of many halves, so many are drawn at random.
FEWEST_FOR_HALVES = 6
HALVES = 500


@dataclass(frozen=True)
class Recency:
    """A row of a sequence as `scale` times the sum over its tasks of share^age times their rows.

    The age of a task is the number of tasks that were learned after it. With share 1 and scale 1
    the row is the plain sum; with share 0 it is that of the last task.
    """

    share: float
    scale: float

    def predict(self, rows: np.ndarray) -> np.ndarray:
        """The row (N,) after tasks with these single rows (t, N), in their order."""
        return self.scale * _weighted_sum(rows, self.share)


def _weighted_sum(rows: np.ndarray, share: float) -> np.ndarray:
    ages = np.arange(len(rows))[::-1]
    return np.power(share, ages) @ rows


def _step_products(
    sequence: MeasuredSequence, single: Mapping[str, np.ndarray], share: float
) -> Iterator[tuple[float, float, float]]:
    """Yields, per step, the sum's product with the measured row, and the squares of both."""
    rows = np.array([single[task] for task in sequence.tasks])
    for number in range(len(rows)):
        target = sequence.forgetting[number]
        predicted = _weighted_sum(rows[: number + 1], share)
        usable = np.isfinite(target) & np.isfinite(predicted)
        predicted = predicted[usable]
        target = target[usable]
        yield float(predicted @ target), float(predicted @ predicted), float(target @ target)


def fit_recency(
    sequences: Sequence[MeasuredSequence],
    single: Mapping[str, np.ndarray],
    *,
    shares: Sequence[float] | np.ndarray = _SHARES,
) -> Recency:
    """Fits share and scale by least squares on all steps and examples of some sequences.

    Parameters
    ----------
    single
        Task -> forgetting (N,) of the base model fine-tuned on that task alone.
    shares
        Values of the share that are tried; `[1.0]` leaves the scale alone to be fitted.

    Raises
    ------
    ValueError
        If there is no sequence.
    """
    if not sequences:
        raise ValueError("no sequence to fit the share and the scale on")
    best = Recency(share=1.0, scale=1.0)
    least = np.inf
    for share in shares:
        products = squares = total = 0.0
        for sequence in sequences:
            for product, square, target_square in _step_products(sequence, single, float(share)):
                products += product
                squares += square
                total += target_square
        scale = products / squares if squares else 0.0
        error = total - scale * products
        if error < least:
            least = error
            best = Recency(share=float(share), scale=scale)
    return best


def r_squared(target: np.ndarray, predicted: np.ndarray) -> float:
    """1 - sum of squared errors / sum of squared deviations from the mean, NaN left out."""
    usable = np.isfinite(target) & np.isfinite(predicted)
    spread = np.square(target[usable] - target[usable].mean()).sum()
    return float(1 - np.square(target[usable] - predicted[usable]).sum() / spread)


def additivity_lines(
    sequences: Sequence[MeasuredSequence], single: Mapping[str, np.ndarray], seed: int = 0
) -> list[dict[str, Any]]:
    """The lines of sequence_additivity.csv: R2 of each prediction from single rows.

    There is one line per run, order, prediction and step from the second on, and one of step `all`
    that pools them. `low` and `high` are a 95 percent interval from resampled upstream examples.
    An upstream example with a missing value after any step, or in any single row, is left out of
    all lines of the order. `examples` is the number of those that remain, and a warning reports
    how many do not.
    Lines of order `all` give the mean over orders, with an interval over orders.
    """
    lines = []
    for run in dict.fromkeys(sequence.run for sequence in sequences):
        of_run = [sequence for sequence in sequences if sequence.run == run]
        pooled: dict[str, dict[str, list[float]]] = {}
        for sequence in of_run:
            fitted = _fit_on_others(sequence, of_run, single)
            label = {"run": run, "order": sequence.order, "seed": sequence.seed}
            for name in SUMS:
                predicted = _predicted_rows(name, sequence, single, fitted)
                usable = _complete_examples(sequence, predicted)
                examples = int(usable.sum())
                if name == SUMS[0] and examples < len(usable):
                    log.warning(
                        "run %r, order %r, seed %s: R2 leaves out %d of %d upstream examples, "
                        "which have a missing value after a step or in the row of a task",
                        sequence.run,
                        sequence.order,
                        sequence.seed,
                        len(usable) - examples,
                        len(usable),
                    )
                for step, r2, interval in _r2_by_step(sequence, predicted, usable, seed=seed):
                    line = {**label, "prediction": name, "step": step, "r2": r2}
                    line["examples"] = examples
                    line |= {"low": interval[0], "high": interval[1]}
                    if name in fitted:
                        line |= {"share": fitted[name].share, "scale": fitted[name].scale}
                    lines.append(line)
                    if step == "all":
                        by_order = pooled.setdefault(name, {})
                        by_order.setdefault(sequence.order, []).append(r2)
        for name, by_order in pooled.items():
            values = np.array([np.mean(part) for part in by_order.values()])
            low, high = bootstrap_interval(values)
            line = {"run": run, "order": "all", "prediction": name, "step": "all"}
            lines.append({**line, "r2": float(values.mean()), "low": low, "high": high})
    return lines


def _fit_on_others(
    sequence: MeasuredSequence,
    sequences: Sequence[MeasuredSequence],
    single: Mapping[str, np.ndarray],
) -> dict[str, Recency]:
    """The factor and the share, fitted on the other orders; on the order itself without others."""
    others = [other for other in sequences if other.order != sequence.order] or [sequence]
    return {
        "scaled_sum": fit_recency(others, single, shares=[1.0]),
        "recency": fit_recency(others, single),
    }


def _predicted_rows(
    name: str,
    sequence: MeasuredSequence,
    single: Mapping[str, np.ndarray],
    fitted: Mapping[str, Recency],
) -> np.ndarray:
    """The rows (T, N) after each step, by one prediction."""
    rows = np.array([single[task] for task in sequence.tasks])
    if name == "last_task":
        return rows
    if name == "sum":
        return np.cumsum(rows, axis=0)
    return np.array([fitted[name].predict(rows[: t + 1]) for t in range(len(rows))])


def _complete_examples(sequence: MeasuredSequence, predicted: np.ndarray) -> np.ndarray:
    """Mask (N,) of the upstream examples without a missing value in any step or prediction."""
    return np.isfinite(sequence.forgetting).all(axis=0) & np.isfinite(predicted).all(axis=0)


def _r2_by_step(
    sequence: MeasuredSequence, predicted: np.ndarray, usable: np.ndarray, seed: int
) -> list[tuple[int | str, float, tuple[float, float]]]:
    """R2 and its interval after each step from the second on, then of these steps together.

    Only the examples of the mask `usable` (N,) count. Nothing is returned for a single step, or if
    no example is usable.
    """
    target = sequence.forgetting[1:, usable]
    squared_errors = np.square(target - predicted[1:, usable])
    if not target.size:
        return []
    weights = np.random.default_rng(seed).multinomial(
        target.shape[1], np.full(target.shape[1], 1 / target.shape[1]), size=DRAWS
    )
    results: list[tuple[int | str, float, tuple[float, float]]] = []
    for number in range(len(target)):
        part = slice(number, number + 1)
        results.append(
            (number + 2, *_r2_with_interval(target[part], squared_errors[part], weights))
        )
    results.append(("all", *_r2_with_interval(target, squared_errors, weights)))
    return results


def _r2_with_interval(
    target: np.ndarray, squared_errors: np.ndarray, weights: np.ndarray
) -> tuple[float, tuple[float, float]]:
    """R2 of rows (t, n) with squared errors (t, n), and its interval over resampled columns."""
    rows, columns = target.shape
    errors = weights @ squared_errors.sum(axis=0)
    sums = weights @ target.sum(axis=0)
    squares = weights @ np.square(target).sum(axis=0)
    drawn_r2 = 1 - errors / (squares - np.square(sums) / (rows * columns))
    value = 1 - squared_errors.sum() / np.square(target - target.mean()).sum()
    low, high = np.quantile(drawn_r2, [0.025, 0.975])
    return float(value), (float(low), float(high))


# ---- prediction from probes after each step


def prediction_lines(
    sequences: Sequence[MeasuredSequence],
    rows: Mapping[str, np.ndarray],
    *,
    probes: int,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """The lines of sequence_prediction.csv: the row after each step, predicted from probes.

    `gaussian`, `additive` and `column_mean` are the completion methods of this name. They are
    fitted on the rows of single fine-tunes on the tasks that the order does not have, and the first
    two get the probes of the sequence's row. `gaussian_all` is fitted on the rows of all tasks.
    `sum_and_probes` is a line through the probes, against the sum of the order's single rows; `sum`
    uses no probe. Errors are over examples that are not probed, and are means over draws of probes.

    Parameters
    ----------
    rows
        Forgetting (N,) of the base model fine-tuned on one task alone, by task: the rows of Z. An
        order that leaves out fewer than two of them is predicted by all.
    probes
        Number of probed examples.
    """
    fitted: dict[frozenset[str], dict[str, Completer]] = {}
    lines = []
    for sequence in sequences:
        others = [task for task in rows if task not in sequence.tasks]
        trained_on = others if len(others) > 1 else list(rows)
        key = frozenset(trained_on)
        if key not in fitted:
            fitted[key] = _fit_completers(rows, trained_on)
        completers = fitted[key]
        total = np.zeros(sequence.forgetting.shape[1])
        for number, task in enumerate(sequence.tasks):
            total = total + rows[task]
            errors = _prediction_errors(
                sequence.forgetting[number],
                total,
                completers=completers,
                probes=probes,
                seed=seed,
            )
            for name, (rmse, r2, error_of_mean) in errors.items():
                lines.append(
                    {
                        "run": sequence.run,
                        "order": sequence.order,
                        "seed": sequence.seed,
                        "step": number + 1,
                        "method": name,
                        "rmse": float(rmse),
                        "r2": float(r2),
                        "error_of_mean": float(error_of_mean),
                    }
                )
    return lines + _means_of_predictions(lines)


def _prediction_errors(
    row: np.ndarray,
    total: np.ndarray,
    *,
    completers: Mapping[str, Completer],
    probes: int,
    seed: int,
) -> dict[str, np.ndarray]:
    """RMSE, R2 and error of the mean (3,) of every method, as means over draws of probes.

    Probes are drawn among the examples with a value; one of them stays unprobed.

    Parameters
    ----------
    row
        Forgetting (N,) after the step.
    total
        Sum (N,) of the single rows of the tasks so far.
    """
    errors: dict[str, list[tuple[float, float, float]]] = {}
    observed = np.isfinite(row)
    count = min(probes, max(int(observed.sum()) - 1, 0))
    for draw in range(PROBE_SEEDS):
        index = random_probes(len(row), count, seed + draw, allowed=observed)
        predicted = {}
        for name, completer in completers.items():
            predicted[name] = completer.predict(index, row[index])
        predicted["sum"] = total
        predicted["sum_and_probes"] = _line_through(total, index, row[index])
        unprobed = np.ones(len(row), dtype=bool)
        unprobed[index] = False
        for name, values in predicted.items():
            scores = _errors(row[unprobed], values[unprobed])
            errors.setdefault(name, []).append(scores)
    return {name: np.mean(scores, axis=0) for name, scores in errors.items()}


def _fit_completers(
    rows: Mapping[str, np.ndarray], trained_on: Sequence[str]
) -> dict[str, Completer]:
    """The methods of `prediction_lines` by name, fitted on the rows of these tasks or of all."""
    training = np.array([rows[task] for task in trained_on])
    completers = {}
    for name in ("column_mean", "additive", "gaussian"):
        completers[name] = make(name).fit(training)
    completers["gaussian_all"] = make("gaussian").fit(np.array(list(rows.values())))
    return completers


def _line_through(total: np.ndarray, index: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Least-squares line of the probed values against the sum at the same examples.

    Without a probe at which the sum is known, it is the sum.
    """
    known = np.isfinite(total[index])
    if not known.any():
        return total
    x = total[index][known]
    y = values[known]
    slope = float(np.cov(x, y, ddof=0)[0, 1] / max(np.var(x), 1e-12))
    return y.mean() + slope * (total - x.mean())


def _errors(target: np.ndarray, predicted: np.ndarray) -> tuple[float, float, float]:
    """RMSE, R2, and the absolute error of the mean forgetting."""
    usable = np.isfinite(target) & np.isfinite(predicted)
    residuals = target[usable] - predicted[usable]
    rmse = float(np.sqrt(np.square(residuals).mean()))
    return rmse, r_squared(target, predicted), float(abs(residuals.mean()))


def _means_of_predictions(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Means over the steps of all orders, with an interval over orders."""
    values: dict[tuple[str, str], dict[str, list[Mapping[str, Any]]]] = {}
    for line in lines:
        by_order = values.setdefault((line["run"], line["method"]), {})
        by_order.setdefault(line["order"], []).append(line)
    means = []
    for (run, method), by_order in values.items():
        record: dict[str, Any] = {"run": run, "order": "all", "step": "all", "method": method}
        for metric in ("rmse", "r2", "error_of_mean"):
            of_orders = []
            for part in by_order.values():
                of_orders.append(np.mean([line[metric] for line in part]))
            low, high = bootstrap_interval(np.array(of_orders))
            record[metric] = float(np.mean(of_orders))
            record[f"{metric}_low"] = low
            record[f"{metric}_high"] = high
        means.append(record)
    return means


# ---- the choice of an order


def choice_lines(
    sequences: Sequence[MeasuredSequence], single: Mapping[str, np.ndarray]
) -> list[dict[str, Any]]:
    """The lines of sequence_choice.csv: the final forgetting of each order, measured and predicted.

    The prediction of an order is that of `fit_recency` on the other orders of the same run, so
    that no measurement of the order itself is read. The line `all` of a run has Spearman's rank
    correlation with its p-value, the order that would be chosen, and the forgetting that this
    choice has above the best order and below the mean order, in nats. A run with fewer than three
    orders has no such line.

    That correlation is biased towards -1: an order with much forgetting is left out of the fit
    that predicts it, which lowers its prediction. `spearman_of_halves` has no such bias. It is the
    mean rank correlation over halves of the orders, each predicted by one fit on the other half
    (`correlate_halves`).
    """
    lines = []
    for run in dict.fromkeys(sequence.run for sequence in sequences):
        of_run = [sequence for sequence in sequences if sequence.run == run]
        measured: dict[str, list[float]] = {}
        predicted: dict[str, list[float]] = {}
        for sequence in of_run:
            rows = np.array([single[task] for task in sequence.tasks])
            recency = _fit_on_others(sequence, of_run, single)["recency"]
            measured.setdefault(sequence.order, []).append(np.nanmean(sequence.forgetting[-1]))
            predicted.setdefault(sequence.order, []).append(np.nanmean(recency.predict(rows)))
        actual = {order: float(np.mean(values)) for order, values in measured.items()}
        expected = {order: float(np.mean(values)) for order, values in predicted.items()}
        for order in actual:
            lines.append(
                {
                    "run": run,
                    "order": order,
                    "measured": actual[order],
                    "predicted": expected[order],
                    "measured_rank": _rank(actual, order),
                    "predicted_rank": _rank(expected, order),
                }
            )
        if len(actual) > 2:
            judged = _judge_choice(actual, expected)
            judged["spearman_of_halves"] = correlate_halves(of_run, single)
            lines.append({"run": run, "order": "all", **judged})
    return lines


def correlate_halves(
    sequences: Sequence[MeasuredSequence], single: Mapping[str, np.ndarray]
) -> float:
    """Mean rank correlation of the predicted and measured final forgetting of half of the orders.

    Share and scale are fitted on one half, as by `fit_recency`, and the other half is ranked. The
    mean is over all halves, or `HALVES` random ones of many. NaN with fewer than six orders.
    """
    orders = list(dict.fromkeys(sequence.order for sequence in sequences))
    if len(orders) < FEWEST_FOR_HALVES:
        return float("nan")
    sums = {}
    predicted = {}
    measured = {}
    for order in orders:
        of_order = [sequence for sequence in sequences if sequence.order == order]
        sums[order] = sum(_recency_sums(sequence, single) for sequence in of_order)
        rows = np.array([single[task] for task in of_order[0].tasks])
        means = [np.nanmean(_weighted_sum(rows, float(share))) for share in _SHARES]
        predicted[order] = np.array(means)
        measured[order] = np.mean([np.nanmean(s.forgetting[-1]) for s in of_order])
    halves = list(combinations(orders, len(orders) // 2))
    if len(halves) > HALVES:
        drawn = np.random.default_rng(0).choice(len(halves), HALVES, replace=False)
        halves = [halves[number] for number in drawn]
    correlations = []
    for half in halves:
        products, squares, total = sum(sums[order] for order in half).T
        scales = products / np.where(squares > 0, squares, np.inf)
        best = int(np.argmin(total - scales * products))
        others = [order for order in orders if order not in half]
        expected = [scales[best] * predicted[order][best] for order in others]
        actual = [measured[order] for order in others]
        if np.ptp(expected) > 0 and np.ptp(actual) > 0:
            correlations.append(stats.spearmanr(expected, actual).statistic)
    return float(np.mean(correlations)) if correlations else float("nan")


def _recency_sums(sequence: MeasuredSequence, single: Mapping[str, np.ndarray]) -> np.ndarray:
    """(shares, 3): the sums of `_step_products` over the steps, by share."""
    sums = np.zeros((len(_SHARES), 3))
    for position, share in enumerate(_SHARES):
        for products in _step_products(sequence, single, float(share)):
            sums[position] += products
    return sums


def _rank(values: Mapping[str, float], order: str) -> int:
    """1 for the order that forgets least."""
    return 1 + sum(value < values[order] for value in values.values())


def rank_correlation(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Spearman's rank correlation of x (n,) and y (n,) with its two-sided p-value.

    Up to `EXACT_ORDERS` values, p is exact: the share of all permutations of y whose correlation is
    as far from 0. The usual approximation gives p = 0 for three values that are ranked alike,
    although this has probability 1/3.
    """
    result = stats.spearmanr(x, y)
    correlation = float(result.statistic)
    if len(x) > EXACT_ORDERS or not np.isfinite(correlation):
        return correlation, float(result.pvalue)
    ranks_x = stats.rankdata(x) - (len(x) + 1) / 2
    ranks_y = stats.rankdata(y) - (len(y) + 1) / 2
    size = np.linalg.norm(ranks_x) * np.linalg.norm(ranks_y)
    correlations = np.array(list(permutations(ranks_y))) @ ranks_x / size
    return correlation, float((np.abs(correlations) >= abs(correlation) - 1e-9).mean())


def _judge_choice(actual: Mapping[str, float], expected: Mapping[str, float]) -> dict[str, Any]:
    orders = list(actual)
    measured = np.array([actual[order] for order in orders])
    predicted = np.array([expected[order] for order in orders])
    correlation, p = rank_correlation(measured, predicted)
    chosen = min(orders, key=expected.__getitem__)
    mean = float(measured.mean())
    return {
        "spearman": correlation,
        "p": p,
        "chosen": chosen,
        "above_best": actual[chosen] - min(actual.values()),
        "below_mean": mean - actual[chosen],
    }
