import json

import numpy as np
import pytest

from lethe.analysis import transfer
from lethe.config.task_table import Task
from lethe.matrix.forgetting_matrix import Matrix

EXAMPLES = 400


def two_models(tasks=14, scale=2.0, noise=0.05, seed=0):
    """Z of two models: the same associations, another scale, other example means."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(tasks, 3)) @ rng.normal(size=(3, EXAMPLES))
    means = rng.normal(size=EXAMPLES)
    names = [f"t{i}" for i in range(tasks)], [f"e{j}" for j in range(EXAMPLES)]
    first = shared + noise * rng.normal(size=shared.shape)
    second = 0.5 + scale * shared + means + noise * rng.normal(size=shared.shape)
    return {"small": Matrix(first, *names), "large": Matrix(second, *names)}


@pytest.fixture
def case():
    z = two_models()
    small, large = z["small"].values, z["large"].values
    return transfer.Case(large[:5], small[:5], small[6:], small[5]), large[5]


def rmse(truth, predicted):
    return np.sqrt(np.square(truth - predicted).mean())


def test_matrices_are_aligned_by_task_and_example_not_by_place():
    z = two_models()["small"]
    order, columns = [3, 1, 2], [7, 5, 6]
    turned = Matrix(
        z.values[np.ix_(order, columns)],
        [z.tasks[i] for i in order] + [],
        [z.example_ids[j] for j in columns],
    )
    other = Matrix(z.values.copy(), [*z.tasks[:-1], "unknown"], z.example_ids)
    source, target = transfer.align(other, turned)
    assert target.tasks == ["t3", "t1", "t2"] and source.example_ids == ["e7", "e5", "e6"]
    np.testing.assert_array_equal(source.values, target.values)


def test_examples_unknown_in_either_model_are_left_out():
    z = two_models()
    z["small"].values[3, 8] = np.nan
    z["large"].values[0, 9] = np.nan
    source, target = transfer.align(z["small"], z["large"])
    assert source.example_ids == target.example_ids
    assert not {"e8", "e9"} & set(source.example_ids) and len(source.example_ids) == 398


def test_models_that_share_nothing_are_refused():
    z = two_models()["small"]
    with pytest.raises(ValueError, match="share 14 tasks and 0 examples"):
        transfer.align(z, Matrix(z.values, z.tasks, [f"x{j}" for j in range(EXAMPLES)]))


def test_the_mapping_recovers_scale_and_offsets_that_two_models_differ_by(case):
    rng = np.random.default_rng(1)
    source, offsets = rng.normal(size=(30, 200)), rng.normal(size=200)
    move = transfer.fit_mapping(3 * source + offsets, source)
    unseen = rng.normal(size=200)
    # Offsets are shrunk by 30 / 31 towards their mean.
    np.testing.assert_allclose(move(unseen), 3 * unseen + offsets, atol=0.1)


@pytest.mark.parametrize("method", ["mapped_row", "weights"])
def test_a_row_is_predicted_without_any_probe_of_the_target(case, method):
    known, truth = case
    none = np.array([], dtype=int)
    predicted = transfer.METHODS[method](known, none, np.array([]))
    assert rmse(truth, predicted) < 0.5 * rmse(truth, known.target_rows.mean(axis=0))


@pytest.mark.parametrize("rows", [1, 5])
def test_own_rows_without_a_probe_predict_their_mean(case, rows):
    known, _ = case
    known = transfer.Case(
        known.target_rows[:rows],
        known.source_rows[:rows],
        known.other_source_rows,
        known.source_row,
    )
    predicted = transfer.predict_from_own_rows(known, np.array([], dtype=int), np.array([]))
    np.testing.assert_allclose(predicted, known.target_rows.mean(axis=0), atol=1e-12)


@pytest.mark.parametrize("method", ["mapped_row", "pooled"])
def test_the_source_helps_when_the_models_share_their_associations(case, method):
    known, truth = case
    known = transfer.Case(
        known.target_rows[:2], known.source_rows[:2], known.other_source_rows, known.source_row
    )
    index = np.arange(0, EXAMPLES, 80)
    alone = transfer.predict_from_own_rows(known, index, truth[index])
    helped = transfer.METHODS[method](known, index, truth[index])
    assert rmse(truth, helped) < rmse(truth, alone)


@pytest.mark.parametrize("method", ["mapped_row", "weights"])
def test_probes_correct_an_offset_that_nothing_else_could_tell(case, method):
    known, truth = case
    index = np.arange(0, EXAMPLES, 8)
    predict = transfer.METHODS[method]
    before = predict(known, index, truth[index] + 5) - (truth + 5)
    assert abs(before.mean()) < 1


def test_one_own_row_is_enough_for_a_prediction(case):
    known, truth = case
    one = transfer.Case(
        known.target_rows[:1], known.source_rows[:1], known.other_source_rows, known.source_row
    )
    index = np.arange(0, EXAMPLES, 40)
    for method in transfer.METHODS.values():
        assert np.isfinite(method(one, index, truth[index])).all()


def test_the_difference_from_the_source_is_completed():
    rng = np.random.default_rng(5)
    shared = rng.normal(size=(25, 8)) @ rng.normal(size=(8, EXAMPLES))
    small = shared + 0.3 * rng.normal(size=shared.shape)
    # A factor of the target alone, which the source's row cannot show.
    own = rng.normal(size=(25, 1)) @ rng.normal(size=(1, EXAMPLES))
    large = shared + own + 0.3 * rng.normal(size=shared.shape)
    case = transfer.Case(large[:24], small[:24], small[:0], small[24])
    index = np.arange(0, EXAMPLES, 50)
    predicted = transfer.predict_difference(case, index, large[24, index])
    errors = {}
    for name in ("own", "mapped_row"):
        alone = transfer.METHODS[name](case, index, large[24, index])
        errors[name] = rmse(large[24], alone)
    assert rmse(large[24], predicted) < 0.9 * min(errors.values())


def test_methods_that_depend_on_the_known_rows_only_are_fitted_once(case):
    known, truth = case
    index = np.arange(0, EXAMPLES, 40)
    first = transfer.predict_difference(known, index, truth[index])
    fitted = known.fitted["difference"]
    second = transfer.predict_difference(known, index, truth[index])
    assert known.fitted["difference"] is fitted
    np.testing.assert_array_equal(first, second)


@pytest.fixture(scope="module")
def records():
    z = two_models()
    tasks = {}
    for number, name in enumerate(z["small"].tasks):
        tasks[name] = Task(name=name, group="g", split="test" if number > 9 else "train")
    return transfer.evaluate_transfer(z, tasks, [3, 50], [5, 900], [0, 1])


def test_every_pair_and_method_has_a_line_a_seed_and_one_over_seeds(records):
    pairs = {(line["source"], line["target"]) for line in records}
    assert pairs == {("small", "large"), ("large", "small")}
    # 50 own rows of 10 and 900 probes of 400 examples cannot be had.
    assert {line["own_rows"] for line in records} == {3}
    assert {line["k"] for line in records} == {0, 5}
    chosen = [
        line
        for line in records
        if (line["target"], line["k"], line["method"], line["metric"])
        == ("large", 5, "pooled", "rmse")
    ]
    assert [line["seed"] for line in chosen] == ["0", "1", "all"]
    assert chosen[2]["low"] <= chosen[2]["value"] <= chosen[2]["high"]


def test_the_report_table_sets_the_methods_side_by_side(records):
    lines = transfer.transfer_table(records)
    assert len(lines) == 4 and len({json.dumps(sorted(line)) for line in lines}) == 1
    unprobed = next(line for line in lines if line["k"] == 0)
    # Only `pooled` needs a probe; the others are compared with what needs no source.
    assert np.isnan(unprobed["pooled"]) and unprobed["best"] in transfer.WITHOUT_PROBES
    assert unprobed["own_low"] < unprobed["own"] < unprobed["own_high"]
