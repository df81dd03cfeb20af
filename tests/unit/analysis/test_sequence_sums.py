from itertools import permutations

import numpy as np
import pytest

from lethe.analysis.sequence_sums import (
    SUMS,
    Recency,
    additivity_lines,
    choice_lines,
    correlate_halves,
    fit_recency,
    prediction_lines,
    rank_correlation,
)
from lethe.matrix.sequence_rows import MeasuredSequence

RNG = np.random.default_rng(0)
TASKS = ["p", "q", "r", "s"]
ORDERS = {"a": TASKS, "b": TASKS[::-1], "c": ["q", "s", "p", "r"], "d": ["r", "p", "s", "q"]}
FACTORS = RNG.normal(size=(2, 80))
SINGLE = {}
for number, name in enumerate(TASKS):
    SINGLE[name] = 0.2 * (number + 1) + RNG.normal(size=2) @ FACTORS


def follow(recency: Recency, noise=0.0, run="none"):
    """Sequences whose rows follow a rule exactly, or with noise."""
    sequences = []
    for order, tasks in ORDERS.items():
        rows = np.array([SINGLE[task] for task in tasks])
        forgetting = np.array([recency.predict(rows[: t + 1]) for t in range(len(rows))])
        sequences.append(
            MeasuredSequence(
                order=order,
                run=run,
                seed=0,
                tasks=tasks,
                forgetting=forgetting + RNG.normal(scale=noise, size=forgetting.shape),
                scores={},
                replayed=[0] * len(tasks),
            )
        )
    return sequences


def table(lines, *keys):
    return {tuple(line[key] for key in keys): line for line in lines}


def test_rows_that_add_up_are_explained_by_their_sum():
    lines = table(additivity_lines(follow(Recency(1, 1)), SINGLE), "order", "prediction", "step")
    for order in ORDERS:
        line = lines[order, "sum", "all"]
        assert line["r2"] == pytest.approx(1) and line["low"] == pytest.approx(1)
        assert lines[order, "recency", "all"]["share"] == pytest.approx(1)
        assert lines[order, "last_task", "all"]["r2"] < 0.9
    assert {line["prediction"] for line in lines.values()} == set(SUMS)
    assert lines["all", "sum", "all"]["r2"] == pytest.approx(1)


def test_fading_rows_are_explained_by_the_share_that_stays():
    sequences = follow(Recency(share=0.5, scale=0.8))
    fitted = fit_recency(sequences, SINGLE)
    assert (fitted.share, fitted.scale) == (pytest.approx(0.5), pytest.approx(0.8))
    lines = table(additivity_lines(sequences, SINGLE), "order", "prediction", "step")
    assert lines["a", "recency", "all"]["r2"] == pytest.approx(1)
    assert lines["a", "sum", "all"]["r2"] < 0.9


def test_examples_with_a_missing_value_are_counted_and_reported(caplog):
    sequences = follow(Recency(1, 1))
    complete = table(additivity_lines(sequences, SINGLE), "order", "prediction", "step")
    examples = sequences[0].forgetting.shape[1]
    assert complete["a", "sum", "all"]["examples"] == examples
    assert not caplog.records
    sequences[0].forgetting[1, [2, 5]] = np.nan
    sequences[0].forgetting[0, 5] = np.nan
    lines = table(additivity_lines(sequences, SINGLE), "order", "prediction", "step")
    for prediction in SUMS:
        assert lines[sequences[0].order, prediction, "all"]["examples"] == examples - 2
        assert np.isfinite(lines[sequences[0].order, prediction, "all"]["r2"])
    assert lines[sequences[1].order, "sum", 2]["examples"] == examples
    (record,) = caplog.records
    assert f"R2 leaves out 2 of {examples} upstream examples" in record.getMessage()


def test_an_order_without_a_complete_example_has_no_line():
    sequences = follow(Recency(1, 1))
    sequences[0].forgetting[1] = np.nan
    lines = table(additivity_lines(sequences, SINGLE), "order", "prediction", "step")
    orders = {order for order, _, _ in lines}
    assert sequences[0].order not in orders
    assert sequences[1].order in orders


def sums_with_noise(noise):
    lines = additivity_lines(follow(Recency(1, 1), noise=noise), SINGLE)
    return table(lines, "order", "prediction", "step")


def test_the_interval_contains_the_value_and_shrinks_with_the_noise():
    wide = sums_with_noise(1.0)
    narrow = sums_with_noise(0.1)
    for lines in (wide, narrow):
        line = lines["b", "sum", "all"]
        assert line["low"] < line["r2"] < line["high"]
    width = {}
    for name, lines in {"wide": wide, "narrow": narrow}.items():
        width[name] = lines["b", "sum", "all"]["high"] - lines["b", "sum", "all"]["low"]
    assert width["narrow"] < width["wide"]


def test_an_order_is_judged_by_what_was_fitted_on_the_others():
    sequences = follow(Recency(0.5, 1))
    # A broken order must not change what is predicted for it.
    broken = MeasuredSequence(**vars(sequences[0]) | {"forgetting": sequences[0].forgetting * 9})
    for of_a in (sequences[0], broken):
        lines = table(choice_lines([of_a, *sequences[1:]], SINGLE), "order")
        rows = np.array([SINGLE[task] for task in ORDERS["a"]])
        expected = Recency(0.5, 1).predict(rows).mean()
        assert lines["a",]["predicted"] == pytest.approx(expected)


def test_the_choice_names_the_order_that_forgets_least():
    sequences = follow(Recency(0.5, 1))
    lines = table(choice_lines(sequences, SINGLE), "order")
    total = lines["all",]
    assert total["spearman"] == pytest.approx(1) and total["above_best"] == pytest.approx(0)
    assert lines[total["chosen"],]["measured_rank"] == 1
    assert total["below_mean"] > 0


def test_halves_of_the_orders_rank_without_the_bias_of_leaving_one_out():
    tasks = list(SINGLE)
    orders = {}
    for number, order in enumerate(permutations(tasks)):
        orders[f"o{number}"] = list(order)
    chosen = dict(list(orders.items())[:8])

    def followed(final):
        sequences = []
        for name, order in chosen.items():
            rows = np.array([SINGLE[task] for task in order])
            forgetting = np.cumsum(rows, axis=0) * final(name)
            sequences.append(
                MeasuredSequence(
                    order=name,
                    run="none",
                    seed=0,
                    tasks=order,
                    forgetting=forgetting,
                    scores={},
                    replayed=[0] * len(order),
                )
            )
        return sequences

    # Z says nothing about which of these orders forgets more.
    scales = dict(zip(chosen, np.random.default_rng(3).permutation(8) / 4 + 1, strict=True))
    unrelated = choice_lines(followed(scales.get), SINGLE)[-1]
    assert unrelated["spearman"] < -0.9
    assert abs(unrelated["spearman_of_halves"]) < 0.6
    rule = Recency(0.5, 1)
    exact = []
    for sequence in followed(lambda name: 1.0):
        rows = np.array([SINGLE[task] for task in sequence.tasks])
        forgetting = np.array([rule.predict(rows[: t + 1]) for t in range(len(rows))])
        exact.append(MeasuredSequence(**vars(sequence) | {"forgetting": forgetting}))
    assert correlate_halves(exact, SINGLE) == pytest.approx(1)
    assert np.isnan(correlate_halves(exact[:5], SINGLE))


def test_a_missing_example_is_left_out_and_not_filled():
    sequences = follow(Recency(1, 1))
    for sequence in sequences:
        sequence.forgetting[1, 3] = np.nan
    lines = table(additivity_lines(sequences, SINGLE), "order", "prediction", "step")
    assert lines["a", "sum", "all"]["r2"] == pytest.approx(1)


def test_probes_predict_rows_that_lie_in_the_span_of_training_rows():
    rows = dict(SINGLE)
    for number in range(12):
        rows[f"other {number}"] = RNG.normal(size=2) @ FACTORS
    lines = prediction_lines(follow(Recency(1, 1)), rows, probes=10)
    means = table([line for line in lines if line["order"] == "all"], "method")
    assert means["sum",]["r2"] == pytest.approx(1)
    assert means["sum_and_probes",]["r2"] == pytest.approx(1)
    assert means["gaussian",]["r2"] > 0.9 > means["column_mean",]["r2"]
    assert means["gaussian",]["rmse_low"] <= means["gaussian",]["rmse"]


def test_probes_are_drawn_among_the_examples_with_a_value():
    sequences = follow(Recency(1, 1))
    examples = sequences[0].forgetting.shape[1]
    without = np.arange(examples) % 4 > 0
    for sequence in sequences:
        sequence.forgetting[:, without] = np.nan
    rows = dict(SINGLE)
    first = next(iter(rows))
    # A single row may lack an example, also one that is probed.
    rows[first] = np.where(np.arange(examples) == 0, np.nan, rows[first])
    lines = prediction_lines(sequences, rows, probes=10)
    means = table([line for line in lines if line["order"] == "all"], "method")
    assert means["sum_and_probes",]["r2"] == pytest.approx(1)
    assert all(np.isfinite(line["rmse"]) for line in lines)


def test_without_probes_the_line_through_them_is_the_sum():
    lines = prediction_lines(follow(Recency(1, 1)), SINGLE, probes=0)
    means = table([line for line in lines if line["order"] == "all"], "method")
    assert means["sum_and_probes",]["rmse"] == means["sum",]["rmse"]


def test_an_order_of_all_tasks_is_predicted_by_their_own_rows():
    lines = prediction_lines(follow(Recency(1, 1)), SINGLE, probes=10)
    means = table([line for line in lines if line["order"] == "all"], "method")
    assert means["gaussian",]["r2"] == means["gaussian_all",]["r2"]


def test_three_orders_that_are_ranked_alike_prove_nothing():
    assert rank_correlation(np.arange(3), np.arange(3)) == (pytest.approx(1), pytest.approx(1 / 3))
    correlation, p = rank_correlation(np.arange(7), np.array([0, 1, 2, 3, 4, 6, 5]))
    assert correlation > 0.9 and 0 < p < 0.01
