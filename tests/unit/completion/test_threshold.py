import numpy as np
import pytest

from lethe.completion import make
from lethe.completion.evaluation import evaluate
from lethe.completion.scores import METRICS, score_rows
from lethe.completion.threshold import (
    best_threshold,
    expected_f1_thresholds,
    tuned_threshold,
)
from lethe.config.task_table import Task
from lethe.matrix.forgetting_matrix import Matrix

RNG = np.random.default_rng(0)
# Examples differ in how easily they are forgotten, but hardly any is forgotten by half the tasks.
RATES = np.clip(RNG.beta(0.4, 4.0, size=300), 0, 0.45)
BINARY = (RNG.random((24, 300)) < RATES).astype(float)


def table(names, train):
    """A task table of one group whose first tasks are training tasks."""
    tasks = {}
    for number, name in enumerate(names):
        tasks[name] = Task(name=name, group="g", split="train" if number < train else "test")
    return tasks


def test_the_best_threshold_is_the_best_of_all_by_brute_force():
    truth, predicted = RNG.random(40) < 0.3, np.round(RNG.random(40), 1)

    def f1(cut):
        return score_rows(truth[None].astype(float), predicted[None], 0.5, cut)[
            0, METRICS.index("f1")
        ]

    best = max(f1(cut) for cut in np.arange(-0.05, 1.0, 0.1))
    assert f1(best_threshold([truth], [predicted])) == pytest.approx(best)


def test_the_best_threshold_maximises_the_mean_of_tasks_and_not_f1_of_all_cells():
    """One task forgets much and two forget little; the last one forgets nothing and has no F1."""
    rng = np.random.default_rng(1)
    truths = []
    predictions = []
    for rate in (0.8, 0.1, 0.1, 0.0):
        truths.append(rng.random(60) < rate)
        noise = 0.3 * rng.random(60)
        predictions.append(np.round(0.4 * rate + 0.2 * truths[-1] + noise, 2))

    def mean_f1(cut):
        scores = []
        for truth, predicted in zip(truths[:3], predictions[:3], strict=True):
            called = predicted > cut
            scores.append(2 * (truth & called).sum() / (truth.sum() + called.sum()))
        return np.mean(scores)

    best = max(mean_f1(cut) for cut in np.arange(-0.005, 1.0, 0.01))
    assert mean_f1(best_threshold(truths, predictions)) == pytest.approx(best)
    pooled = best_threshold([np.concatenate(truths)], [np.concatenate(predictions)])
    assert mean_f1(pooled) < best


def test_the_threshold_of_expected_f1_is_half_of_the_best_expected_f1():
    rng = np.random.default_rng(2)
    probabilities = rng.beta(0.5, 3.0, size=(2, 5000))
    probabilities[1] *= 0.3
    cuts = expected_f1_thresholds(probabilities)
    assert cuts.shape == (2, 1)
    assert cuts[1] < cuts[0]
    for row, cut in zip(probabilities, cuts[:, 0], strict=True):
        called = row > cut
        expected_f1 = 2 * row[called].sum() / (called.sum() + row.sum())
        assert cut == pytest.approx(expected_f1 / 2, abs=1e-3)
    # Equal probabilities are called alike.
    assert expected_f1_thresholds(np.array([[0.4, 0.4, 0.4, 0.1]]))[0, 0] == pytest.approx(0.25)


def test_equal_predictions_are_called_alike():
    truth, predicted = np.array([True, False, True, False]), np.array([0.4, 0.4, 0.4, 0.1])
    assert best_threshold([truth], [predicted]) == pytest.approx(0.25)


def test_nothing_to_tune_on_leaves_one_half():
    assert best_threshold([np.zeros(4, dtype=bool)], [np.linspace(0, 1, 4)]) == 0.5
    assert tuned_threshold(lambda: make("column_mean", {}), BINARY[:1], 5) == 0.5
    assert tuned_threshold(lambda: make("column_mean", {}), np.zeros((4, 30)), 5) == 0.5


def test_unknown_cells_are_no_evidence():
    holes = BINARY.copy()
    holes[3, :250] = np.nan
    assert 0 < tuned_threshold(lambda: make("column_mean", {}), holes, 10) < 0.5


def test_f1_of_a_binary_z_is_of_a_threshold_tuned_on_its_training_tasks():
    """The base rate never says more than one half here, and yet orders examples."""
    names = [f"t{i}" for i in range(24)]
    tasks = table(names, train=16)
    matrix = Matrix(BINARY, names, [f"e{i}" for i in range(300)])
    lines = evaluate(matrix, tasks, ["column_mean", "logistic_fa"], [20], [0, 1], 0.5)
    f1 = {
        line["method"]: line["value"]
        for line in lines
        if (line["metric"], line["seed"], line["split"]) == ("f1", "all", "in_domain")
    }
    predicted = np.tile(BINARY[:16].mean(axis=0), (8, 1))
    untuned = np.nanmean(score_rows(BINARY[16:], predicted, 0.5)[:, METRICS.index("f1")])
    assert min(f1.values()) > untuned + 0.1


def test_forgetting_in_nats_is_called_at_the_threshold_itself(monkeypatch):
    from lethe.completion import evaluation

    def never(*_arguments):
        raise AssertionError("a threshold was tuned for nats")

    monkeypatch.setattr(evaluation, "tuned_threshold", never)
    values = RNG.normal(size=(6, 30))
    names = [f"t{i}" for i in range(6)]
    tasks = table(names, train=4)
    matrix = Matrix(values, names, [f"e{i}" for i in range(30)])
    assert evaluate(matrix, tasks, ["column_mean"], [5], [0], 0.5)
