"""Completion of the difference from another model that learned the same tasks."""

import numpy as np
import pytest
from helpers.streamed import CHUNK, write

from lethe.completion import sibling, streamed
from lethe.completion.gaussian import Gaussian
from lethe.completion.predictor import Predictor
from lethe.data.examples import Example
from lethe.errors import LetheError
from lethe.matrix import streams
from lethe.matrix.forgetting_matrix import Matrix, write_matrix

TASKS = 15
EXAMPLES = 300
PROBES = np.arange(3, EXAMPLES, 37)


def two_models(seed=0):
    """Z and Y (TASKS + 1, EXAMPLES): eight factors in common, two of each model, and noise."""
    rng = np.random.default_rng(seed)

    def rows(factors):
        return rng.normal(size=(TASKS + 1, factors)) @ rng.normal(size=(factors, EXAMPLES))

    common = rows(8)
    z = common + 0.3 * rows(2) + 0.3 * rng.normal(size=common.shape)
    y = 0.6 * common + 0.2 * rows(2) + 0.2 * rng.normal(size=common.shape) + 0.4
    return z + rng.normal(size=EXAMPLES), y


def rmse(z, prediction):
    return float(np.sqrt(np.square(prediction - z).mean()))


def test_a_sibling_that_agrees_makes_predictions_better():
    z, y = two_models()
    method = Gaussian().fit(z[:-1], other=y[:-1])
    truth = z[-1]
    alone = method.predict(PROBES, truth[PROBES])
    both = method.predict(PROBES, truth[PROBES], other=y[-1])
    np.testing.assert_array_equal(alone, Gaussian().fit(z[:-1]).predict(PROBES, truth[PROBES]))
    assert method.other_scale(len(PROBES)) > 0
    assert rmse(truth, both) < 0.85 * rmse(truth, alone)


def test_a_sibling_that_has_nothing_in_common_does_not_hurt():
    ratios = []
    scales = []
    for seed in range(10):
        z, _ = two_models(seed)
        _, y = two_models(seed + 100)
        method = Gaussian().fit(z[:-1], other=y[:-1])
        alone = method.predict(PROBES, z[-1, PROBES])
        both = method.predict(PROBES, z[-1, PROBES], other=y[-1])
        ratios.append(rmse(z[-1], both) / rmse(z[-1], alone))
        scales.append(method.other_scale(len(PROBES)))
    assert np.mean(ratios) < 1.01
    assert np.median(scales) == 0


def test_the_prediction_is_that_of_the_difference_and_intervals_move_with_it():
    z, y = two_models()
    method = Gaussian().fit(z[:-1], other=y[:-1])
    scale = method.other_scale(len(PROBES))
    mean = y[:-1].mean(axis=0)
    shift = scale * (y[-1] - mean)
    difference = Gaussian().fit(z[:-1] - scale * (y[:-1] - mean))
    values = z[-1, PROBES] - shift[PROBES]
    both = method.predict(PROBES, z[-1, PROBES], other=y[-1])
    np.testing.assert_allclose(both, difference.predict(PROBES, values) + shift, atol=1e-9)
    low, high = method.predict_interval(PROBES, z[-1, PROBES], 0.8, other=y[-1])
    expected = difference.predict_interval(PROBES, values, 0.8)
    np.testing.assert_allclose(low, expected[0] + shift, atol=1e-9)
    np.testing.assert_allclose(high, expected[1] + shift, atol=1e-9)


def test_left_out_errors_from_the_gram_matrix_are_those_of_refitted_differences():
    z, y = two_models()
    y[4] = np.nan
    noise = 1.0
    train = z[:-1]
    method = Gaussian(noise).fit(train, other=y[:-1])
    model = method._sibling
    members = np.delete(np.arange(TASKS), 4)
    draws = sibling.draw_columns(EXAMPLES, count=9, draws=2, seed=0)
    expected = 0.0
    for row in members:
        others = np.delete(np.arange(TASKS), row)
        without = Gaussian(noise).fit(train[others], other=y[others])
        slope = without._sibling._slope()
        rows = without._sibling.combinations(0.5 * slope)[:-1, :-1] @ without._stacked
        shift = 0.5 * slope * (y[row] - without._other_mean)
        fitted = Gaussian(noise).fit(rows)
        for index in draws:
            predicted = fitted.predict(index, (train[row] - shift)[index]) + shift
            hidden = np.setdiff1d(np.arange(EXAMPLES), index)
            expected += np.square(predicted - train[row])[hidden].sum()
    assert model._left_out_error(0.5, 9) == pytest.approx(expected, rel=1e-6)


def test_of_many_tasks_some_judge_the_sibling(monkeypatch):
    z, y = two_models()
    y[3] = np.nan
    monkeypatch.setattr(sibling, "MANY_TASKS", 10)
    monkeypatch.setattr(sibling, "JUDGED_TASKS", 8)
    method = Gaussian().fit(z[:-1], other=y[:-1])
    judge = method._sibling._judge
    rows = [row for row in range(TASKS) if any(np.array_equal(z[row], c) for c in judge.columns)]
    assert len(rows) == 8
    assert 3 not in rows
    direct = Gaussian().fit(z[rows], other=y[rows])._sibling
    np.testing.assert_allclose(judge.total, direct.total, atol=1e-8)
    assert method._sibling.multiple(9) == direct.multiple(9) > 0


def test_missing_rows_and_cells_of_the_sibling_are_allowed():
    z, y = two_models()
    y[[2, 7]] = np.nan
    y[3, 5:9] = np.nan
    y[-1, :40] = np.nan
    method = Gaussian().fit(z[:-1], other=y[:-1])
    alone = method.predict(PROBES, z[-1, PROBES])
    both = method.predict(PROBES, z[-1, PROBES], other=y[-1])
    assert np.isfinite(both).all()
    assert rmse(z[-1, 40:], both[40:]) < 0.85 * rmse(z[-1, 40:], alone[40:])
    unknown = np.full(EXAMPLES, np.nan)
    np.testing.assert_array_equal(method.predict(PROBES, z[-1, PROBES], other=unknown), alone)


def test_several_rows_with_and_without_probes_are_predicted_as_one_by_one():
    z, y = two_models()
    method = Gaussian().fit(z[:12], other=y[:12])
    values = z[12:, PROBES].copy()
    values[1, 2] = np.nan
    others = y[12:].copy()
    others[2] = np.nan
    together = method.predict(PROBES, values, other=others)
    ends = method.predict_interval(PROBES, values, other=others)
    for row in range(len(values)):
        single = method.predict(PROBES, values[row], other=others[row])
        np.testing.assert_allclose(together[row], single, atol=1e-9)
        low, high = method.predict_interval(PROBES, values[row], other=others[row])
        np.testing.assert_allclose([ends[0][row], ends[1][row]], [low, high], atol=1e-9)
    none = method.predict(np.array([], dtype=int), np.array([]), other=y[-1])
    assert rmse(z[-1], none) < rmse(z[-1], z[:12].mean(axis=0))


def test_too_few_tasks_on_both_models_mean_no_sibling():
    z, y = two_models()
    y[2:-1] = np.nan
    method = Gaussian().fit(z[:-1], other=y[:-1])
    assert method.other_scale(5) == 0
    np.testing.assert_array_equal(method.differences(5), z[:-1])
    assert Gaussian().fit(z[:1], other=y[:1]).other_scale(5) == 0


def test_wrong_rows_of_the_sibling_are_refused():
    z, y = two_models()
    with pytest.raises(ValueError, match="expected that of train"):
        Gaussian().fit(z[:-1], other=y)
    with pytest.raises(ValueError, match="1 infinite cells"):
        Gaussian().fit(z[:-1], other=np.where(y == y[0, 0], np.inf, y)[:-1])
    with pytest.raises(ValueError, match="did not get its training rows"):
        Gaussian().fit(z[:-1]).predict(PROBES, z[-1, PROBES], other=y[-1])
    method = Gaussian().fit(z[:-1], other=y[:-1])
    with pytest.raises(ValueError, match="one row of 300 examples"):
        method.predict(PROBES, z[-1, PROBES], other=y[:2])


@pytest.mark.parametrize("gaps", [False, True])
def test_a_streamed_sibling_is_the_one_in_memory(tmp_path, gaps):
    z, y = (rows.astype(np.float32) for rows in two_models())
    if gaps:
        z[2, 10:14] = np.nan
        z[:-1, 77] = np.nan
        y[5, 100:120] = np.nan
        y[-1, :30] = np.nan
        y[6] = np.nan
    names = [f"t{i}" for i in range(TASKS)]
    (tmp_path / "y").mkdir()
    train = streams.Stream(write(tmp_path, z), names, CHUNK)
    file = write(tmp_path / "y", y)
    known = [name for number, name in enumerate(names) if not (gaps and number == 6)]
    # In another order, and with another size of chunks.
    other = streams.Stream(file, known[::-1])
    fitted = streamed.StreamedCompletion(Gaussian(), train, other)
    index = PROBES[PROBES != 77]
    new = streams.Stream(file, [f"t{TASKS}"])
    predicted = fitted.predict(index, z[-1:, index], other=new)
    dense = Gaussian().fit(z[:-1], other=y[:-1])
    expected = dense.predict(index, z[-1, index], other=y[-1])
    np.testing.assert_allclose(predicted[0], expected, atol=2e-6)
    alone = fitted.predict(index, z[-1:, index])
    np.testing.assert_allclose(alone[0], dense.predict(index, z[-1, index]), atol=1e-6)


def test_a_streamed_row_of_nan_is_as_good_as_none(tmp_path):
    z, y = (rows.astype(np.float32) for rows in two_models())
    y[6] = np.nan
    names = [f"t{i}" for i in range(TASKS)]
    (tmp_path / "y").mkdir()
    (tmp_path / "new").mkdir()
    train = streams.Stream(write(tmp_path, z), names, CHUNK)
    other = streams.Stream(write(tmp_path / "y", y), names, CHUNK)
    fitted = streamed.StreamedCompletion(Gaussian(), train, other)
    new = np.vstack([y[-1], np.full_like(y[-1], np.nan)])
    new_stream = streams.Stream(write(tmp_path / "new", new))
    values = np.vstack([z[-1, PROBES], z[-1, PROBES]])
    predicted = fitted.predict(PROBES, values, other=new_stream)
    dense = Gaussian().fit(z[:-1], other=y[:-1])
    expected = dense.predict(PROBES, values, other=new)
    np.testing.assert_allclose(predicted, expected, atol=2e-6)
    np.testing.assert_allclose(predicted[1], dense.predict(PROBES, values[1]), atol=2e-6)
    y[:] = np.nan
    nothing = streams.Stream(write(tmp_path / "y", y), names, CHUNK)
    with pytest.raises(LetheError, match="0 of the 15 training tasks"):
        streamed.StreamedCompletion(Gaussian(), train, nothing)


def test_streams_that_do_not_fit_are_refused(tmp_path):
    z, y = two_models()
    for name in ("y", "few"):
        (tmp_path / name).mkdir()
    train = streams.Stream(write(tmp_path, z), chunk=CHUNK)
    other = streams.Stream(write(tmp_path / "y", y), chunk=CHUNK)
    few = streams.Stream(write(tmp_path / "few", y[:, :100]), chunk=CHUNK)
    with pytest.raises(LetheError, match=r"few.Z.parquet: 100 examples and 16 of the 16"):
        streamed.StreamedCompletion(Gaussian(), train, few)
    alone = streamed.StreamedCompletion(Gaussian(), train)
    with pytest.raises(LetheError, match=r"y.Z.parquet: rows of another model were passed"):
        alone.predict(PROBES, z[:1, PROBES], other)
    both = streamed.StreamedCompletion(Gaussian(), train, other)
    with pytest.raises(LetheError, match=r"y.Z.parquet: 16 tasks .* expected 1, one per"):
        both.predict(PROBES, z[:1, PROBES], other)


def matrix_of(values, tasks=None, ids=None):
    names = tasks or [f"t{i}" for i in range(len(values))]
    return Matrix(values, names, ids or [f"e{j}" for j in range(values.shape[1])])


def test_rows_of_a_sibling_are_matched_by_task_and_example(tmp_path):
    z, y = two_models()
    path = tmp_path / "Z.parquet"
    tasks = [f"t{i}" for i in range(TASKS + 1)]
    order = np.random.default_rng(3).permutation(EXAMPLES)
    shuffled = y[1:][::-1][:, order].astype(np.float32)
    write_matrix(path, matrix_of(shuffled, tasks[:0:-1], [f"e{j}" for j in order]))
    rows = sibling.read_sibling_rows(path, matrix_of(z))
    assert np.isnan(rows[0]).all()
    np.testing.assert_array_equal(rows[1:], y[1:].astype(np.float32))
    with pytest.raises(LetheError, match=r"Z.parquet: lacks 300 of .* such as 'x0'"):
        sibling.read_sibling_rows(path, matrix_of(z, ids=[f"x{j}" for j in range(EXAMPLES)]))
    with pytest.raises(LetheError, match=r"Z.parquet: has none of the 16 tasks, such as 'u0'"):
        sibling.read_sibling_rows(path, matrix_of(z, tasks=[f"u{i}" for i in range(16)]))


def saved_predictor(train, other, method="gaussian"):
    return Predictor(
        train=train.astype(np.float32),
        example_ids=[f"e{j}" for j in range(EXAMPLES)],
        domains=np.array(["web"] * EXAMPLES),
        index=PROBES,
        probes=[Example("", f"text {j}") for j in PROBES],
        max_tokens=24,
        method=method,
        other=other,
        other_model="small",
    )


def test_a_saved_predictor_keeps_the_sibling(tmp_path):
    z, y = two_models()
    y[4] = np.nan
    predictor = saved_predictor(z[:-1], y[:-1].astype(np.float32))
    predictor.save(tmp_path / "predictor.npz")
    loaded = Predictor.load(tmp_path / "predictor.npz")
    assert loaded.other_model == "small"
    values = z[-1, PROBES]
    before = predictor.predict(values, other=y[-1])
    after = loaded.predict(values, other=y[-1])
    np.testing.assert_array_equal(before.forgetting, after.forgetting)
    np.testing.assert_array_equal(before.low, after.low)
    without = loaded.predict(values)
    assert rmse(z[-1], after.forgetting) < rmse(z[-1], without.forgetting)
    assert (after.high - after.low).mean() < (without.high - without.low).mean()


def test_a_predictor_without_a_sibling_refuses_its_row():
    z, y = two_models()
    with pytest.raises(LetheError, match="holds no rows of one"):
        saved_predictor(z[:-1], None).predict(z[-1, PROBES], other=y[-1])
    with pytest.raises(LetheError, match="'knn' takes no rows of another model"):
        saved_predictor(z[:-1], y[:-1], method="knn")
