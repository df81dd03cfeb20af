"""How much a model learns and forgets along an order of tasks: ACC, BWT, forgetting and FWT.

The definitions, with the variants that others compute, are in docs/explanation/sequences.md.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lethe.analysis.rises import RunKey, describe_rises, noise_floor_between_seeds
from lethe.data.examples import UpstreamExample
from lethe.matrix.sequence_rows import MeasuredSequence, MultitaskFineTune, TaskScores
from lethe.statistics import bootstrap_interval, paired_difference

log = logging.getLogger(__name__)

# The name, in the column `run`, of the fine-tune on all tasks mixed.
MULTITASK = "multitask"
UPSTREAM_MEASURES = (
    "upstream_forgetting",
    "heldout_forgetting",
    "worst_domain_forgetting",
    "rise_share",
    "rise_mean",
    "drift",
    "heldout_kl",
)
# Measures of upstream examples whose unit is not that of forgetting.
_OWN_UNITS = {"rise_share": "share", "heldout_kl": "nats"}
TASK_MEASURES = ("acc", "bwt", "forgetting", "fwt", "fwt_single", "learning")


@dataclass(frozen=True)
class HeldOutExamples:
    """Which upstream examples are never replayed, and how what happened to them is described.

    Attributes
    ----------
    mask
        Boolean (N,), true for the held-out examples.
    domains
        Domains (n,) of the held-out examples.
    noise_floor
        Only larger rises count as rises; in the unit of forgetting.
    """

    mask: np.ndarray
    domains: Sequence[str]
    noise_floor: float = 0.0

    def describe(self, forgetting: np.ndarray) -> dict[str, float]:
        """Mean forgetting, worst domain, rises and drift, from the forgetting (N,) of all."""
        values = forgetting[self.mask]
        described = describe_rises(values, self.domains, self.noise_floor)
        del described["worst_domain"]
        return {"heldout_forgetting": float(np.nanmean(values)), **described}


def find_heldout(
    upstream: Sequence[UpstreamExample],
    sequences: Sequence[MeasuredSequence],
    reference: str,
    noise_floor: float | None = None,
) -> HeldOutExamples:
    """The held-out examples of an experiment.

    Parameters
    ----------
    upstream
        The N upstream examples.
    reference
        The run whose seeds tell the noise.
    noise_floor
        The threshold above which a rise counts. None: twice the standard deviation between seeds of
        the reference run after its last step, or 0 if there is one seed.
    """
    mask = np.array([example.split == "heldout" for example in upstream])
    domains = [example.domain for example in upstream if example.split == "heldout"]
    if noise_floor is None:
        last_rows = {}
        for sequence in sequences:
            key = RunKey(sequence.run, sequence.order, sequence.seed)
            last_rows[key] = sequence.forgetting[-1][mask]
        noise_floor = noise_floor_between_seeds(last_rows, [reference])
    return HeldOutExamples(mask, domains, noise_floor)


def task_measures(scores: TaskScores) -> dict[str, float]:
    """The measures of one sequence of T tasks, in the unit of the scores (higher is better).

    With R[t, i] the score on task i after step t:

    - `acc`: mean over i of R[T, i].
    - `bwt`: 1 / (T - 1) sum over i < T of R[T, i] - R[i, i] (Lopez-Paz and Ranzato, 2017).
    - `forgetting`: 1 / (T - 1) sum over i < T of max over l < T of R[l, i] - R[T, i] (Chaudhry et
      al., 2018). The maximum is over the steps from the one before task i was learned.
    - `fwt`: 1 / (T - 1) sum over i > 1 of R[i - 1, i] - R[0, i], with R[0] of the base model.
    - `fwt_single`: mean over i of R[i, i] minus the score of task i learned alone.
    - `learning`: mean over i of R[i, i] - R[0, i].

    A measure over T - 1 tasks is NaN for a sequence of one task.
    """
    after = scores.after
    learned = np.diagonal(after)
    last = after[-1]
    measures = {
        "acc": float(last.mean()),
        "fwt_single": float((learned - scores.single).mean()),
        "learning": float((learned - scores.base).mean()),
        "bwt": float("nan"),
        "forgetting": float("nan"),
        "fwt": float("nan"),
    }
    count = len(last)
    if count > 1:
        lost = []
        for task in range(count - 1):
            best = max(scores.before[task], after[task:-1, task].max())
            lost.append(best - last[task])
        measures["bwt"] = float((last - learned)[:-1].mean())
        measures["forgetting"] = float(np.mean(lost))
        measures["fwt"] = float((scores.before - scores.base)[1:].mean())
    return {name: measures[name] for name in TASK_MEASURES}


def measure_lines(
    sequences: Sequence[MeasuredSequence],
    multitask: Sequence[MultitaskFineTune],
    heldout: HeldOutExamples,
    orders: Mapping[str, str],
) -> list[dict[str, Any]]:
    """The lines of sequence_measures.csv: one per order, run, seed and measure.

    Orders with the same tasks share a fine-tune on all tasks mixed, and each has lines of it. If
    some orders have such a fine-tune and others do not, a warning names those that lack it.

    Parameters
    ----------
    multitask
        The fine-tunes on all tasks mixed. Empty if the experiment has none.
    orders
        Order -> the order whose fine-tune on all tasks mixed has the same tasks.
    """
    lines = []
    for sequence in sequences:
        label = {"order": sequence.order, "run": sequence.run, "seed": sequence.seed}
        measures = _upstream_measures(sequence.forgetting[-1], heldout)
        if sequence.heldout_kl is not None:
            measures["heldout_kl"] = sequence.heldout_kl[-1]
        lines += _upstream_lines(label, measures, unit_of_upstream(sequence.scores))
        for unit, scores in sequence.scores.items():
            for name, value in task_measures(scores).items():
                lines.append({**label, "measure": name, "unit": unit, "value": value})
    by_order = {(run.order, run.seed): run for run in multitask}
    missing = []
    for order, shared in orders.items():
        for seed in sorted({sequence.seed for sequence in sequences}):
            run = by_order.get((shared, seed))
            if run is None:
                missing.append(f"{order} (seed {seed})")
                continue
            label = {"order": order, "run": MULTITASK, "seed": seed}
            measures = _upstream_measures(run.forgetting, heldout)
            if run.heldout_kl is not None:
                measures["heldout_kl"] = run.heldout_kl
            lines += _upstream_lines(label, measures, unit_of_upstream(run.scores))
            for unit, values in run.scores.items():
                acc = float(np.mean(list(values.values())))
                lines.append({**label, "measure": "acc", "unit": unit, "value": acc})
    if multitask and missing:
        log.warning(
            "%d order(s) have no fine-tune on all tasks mixed, so the run %s is compared without "
            "them: %s",
            len(missing),
            MULTITASK,
            ", ".join(missing),
        )
    return lines


def unit_of_upstream(units: Iterable[str]) -> str:
    """Unit of upstream forgetting: right answers lost where exact match is measured, or nats.

    Parameters
    ----------
    units
        The units of the scores on the tasks, `nats` and, where it is measured, `exact_match`.
    """
    return "exact_match" if "exact_match" in units else "nats"


def _upstream_measures(forgetting: np.ndarray, heldout: HeldOutExamples) -> dict[str, float]:
    mean = float(np.nanmean(forgetting))
    return {"upstream_forgetting": mean, **heldout.describe(forgetting)}


def _upstream_lines(
    label: Mapping[str, Any], measures: Mapping[str, float], unit: str
) -> list[dict[str, Any]]:
    """One line per measure of upstream examples; `unit` is that of forgetting."""
    lines = []
    for name, value in measures.items():
        of_measure = _OWN_UNITS.get(name, unit)
        lines.append({**label, "measure": name, "unit": of_measure, "value": value})
    return lines


def compare_runs(
    lines: Iterable[Mapping[str, Any]],
    reference: str,
    multitask_orders: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """The lines of sequence_comparison.csv: each measure of a run over orders.

    A mean is over the orders that have the measure, and each order is the mean of its seeds. `sd`
    is the standard deviation between orders (n - 1), `low` and `high` a 95 percent bootstrap
    interval over orders. `difference` is the mean paired difference to the reference run on the
    orders of both, with its interval `difference_low` to `difference_high`.

    The fine-tunes on all tasks mixed are counted once each: `orders` is then their number, and the
    mean, `sd` and the interval are over them, because orders with the same tasks share one. The
    paired difference still has one value per order.

    Parameters
    ----------
    reference
        Name of the run that the others are compared with.
    multitask_orders
        Order -> the order whose fine-tune on all tasks mixed it shares. By default none is shared.
    """
    shared_by = dict(multitask_orders or {})
    values: dict[tuple[str, str, str], dict[str, list[float]]] = {}
    for line in lines:
        key = (line["run"], line["unit"], line["measure"])
        values.setdefault(key, {}).setdefault(line["order"], []).append(line["value"])
    means: dict[tuple[str, str, str], dict[str, float]] = {}
    for key, by_order in values.items():
        means[key] = {order: float(np.mean(part)) for order, part in by_order.items()}
    compared = []
    for (run, unit, measure), by_order in means.items():
        of_orders = np.array(list(by_order.values()))
        if run == MULTITASK:
            distinct = {shared_by.get(order, order): value for order, value in by_order.items()}
            of_orders = np.array(list(distinct.values()))
        # An order of one task has no value of some measures.
        of_orders = of_orders[np.isfinite(of_orders)]
        low, high = bootstrap_interval(of_orders)
        spread = float(of_orders.std(ddof=1)) if len(of_orders) > 1 else float("nan")
        line = {
            "run": run,
            "unit": unit,
            "measure": measure,
            "reference": reference,
            "orders": len(of_orders),
            "mean": float(of_orders.mean()) if len(of_orders) else float("nan"),
            "sd": spread,
            "low": low,
            "high": high,
        }
        of_reference = means.get((reference, unit, measure), {})
        shared = [order for order in by_order if order in of_reference]
        if run != reference and shared:
            difference = paired_difference(
                np.array([by_order[order] for order in shared]),
                np.array([of_reference[order] for order in shared]),
            )
            line["difference"] = difference.mean
            line["difference_low"] = difference.low
            line["difference_high"] = difference.high
        compared.append(line)
    return compared


def step_lines(
    sequences: Sequence[MeasuredSequence],
    heldout: HeldOutExamples,
    single: Mapping[str, np.ndarray],
) -> list[dict[str, Any]]:
    """The lines of sequence_steps.csv: one per step, with its forgetting and its own task.

    `mean_forgetting` and `heldout_forgetting` are against the original base model;
    `single_forgetting` is that of the step's task learned alone, `sum_of_single` and
    `heldout_sum_of_single` the sum of these up to the step. All are means over upstream examples,
    those that begin with `heldout` over the held-out ones. `worst_domain_forgetting`, `rise_share`,
    `rise_mean` and `drift` are those of the held-out examples (`lethe.analysis.rises`);
    `heldout_kl` is there if it was measured.

    Parameters
    ----------
    single
        Task -> forgetting (N,) of the base model fine-tuned on that task alone.
    """
    lines = []
    for sequence in sequences:
        total = np.zeros(sequence.forgetting.shape[1])
        for number, task in enumerate(sequence.tasks):
            row = sequence.forgetting[number]
            total = total + single[task]
            line = {
                "order": sequence.order,
                "run": sequence.run,
                "seed": sequence.seed,
                "step": number + 1,
                "task": task,
                "mean_forgetting": float(np.nanmean(row)),
                **heldout.describe(row),
                "single_forgetting": float(np.nanmean(single[task])),
                "sum_of_single": float(np.nanmean(total)),
                "heldout_sum_of_single": float(np.nanmean(total[heldout.mask])),
                "replayed": sequence.replayed[number],
            }
            if sequence.heldout_kl is not None:
                line["heldout_kl"] = sequence.heldout_kl[number]
            for unit, scores in sequence.scores.items():
                line[f"score_base_{unit}"] = float(scores.base[number])
                line[f"score_before_{unit}"] = float(scores.before[number])
                line[f"score_after_{unit}"] = float(scores.after[number, number])
                line[f"score_single_{unit}"] = float(scores.single[number])
                line[f"score_at_end_{unit}"] = float(scores.after[-1, number])
            lines.append(line)
    return lines


def task_lines(sequences: Sequence[MeasuredSequence]) -> list[dict[str, Any]]:
    """The lines of sequence_tasks.csv: the score on each task, `task`, after each step.

    Step 0 is the base model. The step before a task's own step has the task as well; later tasks
    are not measured.
    """
    lines = []
    for sequence in sequences:
        label = {"order": sequence.order, "run": sequence.run, "seed": sequence.seed}
        for unit, scores in sequence.scores.items():
            for position, task in enumerate(sequence.tasks):
                values = {0: scores.base[position]}
                if position:
                    values[position] = scores.before[position]
                for number in range(position, len(sequence.tasks)):
                    values[number + 1] = scores.after[number, position]
                for step, value in values.items():
                    cell = {"task": task, "step": step, "unit": unit, "score": float(value)}
                    lines.append({**label, **cell})
    return lines
