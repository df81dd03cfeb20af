"""A task's own row never enters its prediction, but for the probed cells."""

import numpy as np
import pytest

from lethe.completion import make
from lethe.config.replay_settings import PREDICTION_METHODS, WITHOUT_PROBES
from lethe.errors import LetheError
from lethe.matrix.forgetting_matrix import Matrix, write_matrix
from lethe.matrix.rows import Row, write_row
from lethe.replay.predictions import predict_row, read_measured_rows, read_predictions

NAMES = [f"t{i}" for i in range(7)]
ALLOWED = np.arange(40) % 4 != 3
SETTINGS = {"probes": 6, "seed": 0, "allowed": ALLOWED}


def matrix(seed=0):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(7, 2)) @ rng.normal(size=(2, 40)) + 0.1 * rng.normal(size=(7, 40))
    return Matrix(values.astype(np.float32), list(NAMES), [f"e{i}" for i in range(40)])


@pytest.mark.parametrize("method", sorted({*PREDICTION_METHODS} - {*WITHOUT_PROBES}))
def test_a_tasks_own_row_never_enters_its_prediction(method):
    """All cells of the row change but the probed ones; the prediction stays to the last bit."""
    for row, name in enumerate(NAMES[:4]):
        first = predict_row(matrix(), name, method, **SETTINGS)
        assert first.tasks == [name] and first.values.shape == (1, 40)
        probed = np.flatnonzero(first.values[0] == matrix().values[row])
        assert len(probed) == 6
        assert ALLOWED[probed].all(), "held-out examples are never probed"
        changed = matrix()
        others = np.setdiff1d(np.arange(40), probed)
        changed.values[row, others] = 1e3 * np.random.default_rng(1).normal(size=34)
        second = predict_row(changed, name, method, **SETTINGS)
        np.testing.assert_array_equal(second.values, first.values)
        another = predict_row(changed, "t6", method, **SETTINGS)
        unchanged = predict_row(matrix(), "t6", method, **SETTINGS)
        assert (another.values != unchanged.values).any(), "other tasks do read this row"


def test_a_sibling_that_forgets_alike_makes_the_prediction_better_and_keeps_the_own_row_out():
    z = matrix()
    noise = np.random.default_rng(2).normal(size=z.values.shape)
    sibling = (z.values + 0.05 * noise).astype(np.float32)
    unprobed = np.arange(40) % 4 == 3

    def error(method, **changes):
        predicted = [predict_row(z, name, method, **SETTINGS, **changes).values for name in NAMES]
        return np.square((np.vstack(predicted) - z.values)[:, unprobed]).mean()

    plain = error("gaussian")
    assert error("gaussian_sibling", sibling=sibling) < 0.8 * plain
    assert error("gaussian_sibling") == plain, "the sibling itself has no sibling"
    first = predict_row(z, "t2", "gaussian_sibling", **SETTINGS, sibling=sibling)
    changed = matrix()
    changed.values[2, unprobed] = 99.0
    second = predict_row(changed, "t2", "gaussian_sibling", **SETTINGS, sibling=sibling)
    np.testing.assert_array_equal(second.values, first.values)


def test_means_over_other_tasks_read_no_cell_of_the_task():
    nothing_allowed = SETTINGS | {"allowed": np.zeros(40, dtype=bool)}
    predicted = predict_row(matrix(), "t2", "column_mean", **nothing_allowed).values[0]
    means = np.delete(matrix().values, 2, axis=0).mean(axis=0)
    np.testing.assert_allclose(predicted, means, rtol=1e-5)


@pytest.mark.parametrize("choice", ["random", "a_optimal"])
def test_the_method_is_fitted_on_all_other_rows(choice):
    predicted = predict_row(matrix(), "t2", "gaussian", **SETTINGS, choice=choice).values[0]
    truth = matrix().values[2]
    probed = np.flatnonzero(predicted == truth)
    assert len(probed) == 6 and ALLOWED[probed].all()
    fitted = make("gaussian", {}).fit(np.delete(matrix().values, 2, axis=0))
    expected = fitted.predict(probed, truth[probed])
    others = np.setdiff1d(np.arange(40), probed)
    np.testing.assert_allclose(predicted[others], expected[others], rtol=1e-5)


@pytest.mark.parametrize("method", ["additive", "mf", "knn", "gaussian"])
@pytest.mark.parametrize("own_cell", [np.nan, 0.3])
def test_an_example_that_no_other_task_measured_is_never_predicted(method, own_cell):
    unknown = matrix()
    unknown.values[:, 5] = np.nan
    unknown.values[1, 5] = own_cell
    all_probed = SETTINGS | {"probes": 29}
    predicted = predict_row(unknown, "t1", method, **all_probed)
    assert np.isnan(predicted.values[:, 5]).all()
    assert np.isfinite(np.delete(predicted.values, 5, axis=1)).all()


@pytest.mark.parametrize("choice", ["random", "a_optimal"])
def test_a_prediction_takes_the_probes_that_there_are_and_says_so(caplog, choice):
    few = np.arange(40) < 4
    found = predict_row(matrix(), "t3", "gaussian", **SETTINGS | {"allowed": few}, choice=choice)
    np.testing.assert_array_equal(found.values[0, :4], matrix().values[3, :4])
    assert "6 are wanted, but only 4 examples can be probed on task t3" in caplog.text
    with pytest.raises(LetheError, match="no example can be probed on task 't3'"):
        predict_row(matrix(), "t3", "gaussian", **SETTINGS | {"allowed": np.zeros(40, dtype=bool)})


@pytest.fixture
def files(tmp_path):
    """Z, and a row of its first task."""
    z = matrix()
    write_matrix(tmp_path / "Z.parquet", z)
    count = np.ones(40, dtype=np.int32)
    row = Row(z.example_ids, np.zeros(40, dtype=np.float32), z.values[0], count, settings={})
    write_row(tmp_path / "t0.parquet", row)
    return tmp_path


def test_the_predicted_row_stands_after_the_training_rows_and_is_never_one_of_them(files):
    training = ["t3", "t1"]
    read = read_measured_rows(files / "Z.parquet", training, files / "t0.parquet", "t0")
    assert read.tasks == ["t3", "t1", "t0"] and read.example_ids == matrix().example_ids
    np.testing.assert_array_equal(read.values, matrix().values[[3, 1, 0]])


def test_a_row_of_other_examples_is_refused(files):
    other = Matrix(matrix().values, NAMES, [f"x{i}" for i in range(40)])
    write_matrix(files / "Z.parquet", other)
    with pytest.raises(LetheError, match=r"t0\.parquet: is of other upstream examples than"):
        read_measured_rows(files / "Z.parquet", ["t1"], files / "t0.parquet", "t0")


def test_predictions_of_several_tasks_are_read_as_one_matrix(tmp_path):
    names = ["t4", "t2"]
    for name in names:
        predicted = predict_row(matrix(), name, "additive", **SETTINGS)
        write_matrix(tmp_path / f"{name}.parquet", predicted)
    read = read_predictions([tmp_path / f"{name}.parquet" for name in names])
    assert read.tasks == names and read.values.shape == (2, 40)
    np.testing.assert_array_equal(
        read.values[1], predict_row(matrix(), "t2", "additive", **SETTINGS).values[0]
    )
