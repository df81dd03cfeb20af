import numpy as np
import pytest
from scipy.special import expit

from lethe.completion import METHODS
from lethe.completion.evaluation import evaluate
from lethe.completion.logistic_stack import LogisticStack
from lethe.completion.scores import METRICS, score_rows
from lethe.completion.threshold import expected_f1_thresholds
from lethe.config.analysis_settings import CompletionSettings
from lethe.config.task_table import Task
from lethe.matrix.forgetting_matrix import Matrix

EXAMPLES = 200


def binary(tasks, seed, factors=1.2):
    """0s and 1s of logistic factor analysis with two factors; always the same examples."""
    examples = np.random.default_rng(0)
    base = -1.5 + examples.normal(0, 1.2, EXAMPLES)
    loadings = examples.normal(0, factors, (2, EXAMPLES))
    rng = np.random.default_rng(seed)
    p = expit(base + rng.normal(0, 0.7, (tasks, 1)) + rng.normal(size=(tasks, 2)) @ loadings)
    return (rng.random(p.shape) < p).astype(float)


def aucs(method, test, k):
    """AUC of each test task over its unprobed cells."""
    index = np.arange(0, EXAMPLES, EXAMPLES // k)[:k]
    hidden = np.setdiff1d(np.arange(EXAMPLES), index)
    predicted = method.predict(index, test[:, index])[:, hidden]
    return score_rows(test[:, hidden], predicted, 0.5)[:, METRICS.index("auc")]


@pytest.mark.parametrize("factors", [0.0, 1.2])
def test_it_orders_new_tasks_as_well_as_the_better_of_its_two_methods(factors):
    train = binary(24, seed=1, factors=factors)
    test = binary(40, seed=2, factors=factors)
    means = {}
    for name in ("gaussian", "logistic_fa", "logistic_stack"):
        means[name] = float(np.nanmean(aucs(METHODS[name]().fit(train), test, 25)))
    # The standard error over 40 tasks is about .005.
    assert means["logistic_stack"] > max(means["gaussian"], means["logistic_fa"]) - 0.005


def test_it_predicts_probabilities_and_more_probes_change_its_weights():
    fitted = LogisticStack().fit(binary(12, seed=1))
    test = binary(1, seed=2)[0]
    predicted = fitted.predict(np.arange(20), test[:20])
    assert ((predicted > 0) & (predicted < 1)).all()
    assert not np.allclose(fitted.weights(20), fitted.weights(5))


def test_its_rate_is_that_beyond_what_the_probes_let_expect():
    """Chosen probes may all be often forgotten examples; that says nothing about the task."""
    fitted = LogisticStack().fit(binary(12, seed=1))
    often = np.argsort(-binary(12, seed=1).mean(axis=0), kind="stable")[:20]
    features, _ = fitted._parts.features(often, np.repeat([1.0, 0.0], [14, 6]))
    assert features[0, 3] < 1.0
    rare = np.argsort(binary(12, seed=1).mean(axis=0), kind="stable")[:20]
    features, _ = fitted._parts.features(rare, np.repeat([1.0, 0.0], [14, 6]))
    assert features[0, 3] > 2.0


def test_two_tasks_are_too_few_for_weights():
    train = binary(2, seed=1)
    fitted = LogisticStack().fit(train)
    np.testing.assert_array_equal(fitted.weights(10), np.zeros(4))
    alone = METHODS["logistic_fa"]().fit(train)
    index = np.arange(10)
    values = binary(1, seed=2)[0, :10]
    np.testing.assert_allclose(
        fitted.predict(index, values), alone.predict(index, values), atol=1e-4
    )


def test_unmeasured_cells_neither_probe_nor_judge():
    train = binary(10, seed=1)
    train[:, 7] = np.nan
    train[3, :150] = np.nan
    fitted = LogisticStack().fit(train)
    test = binary(1, seed=2)[0]
    predicted = fitted.predict(np.arange(10, 40), test[10:40])
    assert np.isfinite(predicted).all()


def test_the_same_rows_give_the_same_bytes():
    predictions = []
    for _ in range(2):
        fitted = LogisticStack().fit(binary(10, seed=1))
        predictions.append(fitted.predict(np.arange(15), binary(1, seed=2)[0, :15]))
    np.testing.assert_array_equal(predictions[0], predictions[1])


def test_nats_are_refused_by_name():
    with pytest.raises(ValueError, match="logistic methods need Z in 0..1"):
        LogisticStack().fit(binary(5, seed=1) * 2)


def test_its_cut_of_best_expected_f1_is_near_the_best_of_all_cuts():
    """Tasks differ in their rates, and the cut of each follows from its probabilities alone."""
    fitted = LogisticStack().fit(binary(24, seed=1))
    test = binary(30, seed=2)
    index = np.arange(0, EXAMPLES, 8)
    hidden = np.setdiff1d(np.arange(EXAMPLES), index)
    predicted = fitted.predict(index, test[:, index])[:, hidden]
    f1 = METRICS.index("f1")
    by_cut = []
    for cut in np.arange(0.05, 0.95, 0.05):
        by_cut.append(np.nanmean(score_rows(test[:, hidden], predicted, 0.5, cut)[:, f1]))
    cuts = expected_f1_thresholds(predicted)
    assert np.ptp(cuts) > 0.02
    own = np.nanmean(score_rows(test[:, hidden], predicted, 0.5, cuts)[:, f1])
    assert own > max(by_cut) - 0.01


def test_an_experiment_may_list_it_and_its_f1_uses_its_own_threshold():
    assert "logistic_stack" in CompletionSettings(methods=["logistic_stack"]).methods
    values = binary(10, seed=1)
    names = [f"t{i}" for i in range(10)]
    tasks = {}
    for number, name in enumerate(names):
        tasks[name] = Task(name=name, group="g", split="train" if number < 7 else "test")
    lines = evaluate(
        Matrix(values, names, [f"e{i}" for i in range(EXAMPLES)]),
        tasks,
        methods=["logistic_stack"],
        probes=[20],
        seeds=[0],
        threshold=0.5,
    )
    f1 = [line["value"] for line in lines if line["metric"] == "f1" and line["seed"] == "all"]
    assert all(0.2 < value < 1 for value in f1)
