import numpy as np
import pytest

from lethe.config.similarity_settings import TwoTower
from lethe.similarity.embeddings import Embeddings
from lethe.similarity.two_tower import fit_and_predict, predict_unseen

TRAIN = [0, 1, 2, 4, 5, 6, 7, 9, 10, 11]
TEST = [3, 8]


@pytest.fixture(scope="module")
def bilinear():
    """Forgetting that is a bilinear function of the embeddings."""
    rng = np.random.default_rng(0)
    tasks, examples = rng.normal(size=(12, 3)), rng.normal(size=(80, 3))
    names = [f"t{i}" for i in range(12)], [f"e{i}" for i in range(80)]
    return Embeddings(tasks, examples, *names), 0.1 * tasks @ examples.T


def settings(**changes):
    return TwoTower(**{"hidden": 32, "dims": 8, "epochs": 200, "lr": 0.01, "seeds": [0], **changes})


def test_what_the_embeddings_determine_is_learned(bilinear):
    embeddings, z = bilinear
    predicted = fit_and_predict(embeddings, z, train=TRAIN, settings=settings())
    assert np.corrcoef(predicted[TEST].ravel(), z[TEST].ravel())[0, 1] > 0.7
    assert np.square(predicted[TEST] - z[TEST]).mean() < 0.6 * np.square(z[TEST]).mean()


@pytest.mark.parametrize("offset", ["none", "column_mean"])
def test_changing_test_rows_of_z_changes_no_prediction(bilinear, offset):
    embeddings, z = bilinear
    changed = z.copy()
    changed[TEST[0]], changed[TEST[1]] = np.nan, 1e6
    before, after = (
        predict_unseen(embeddings, rows, train=TRAIN, settings=settings(epochs=5, offset=offset))
        for rows in (z, changed)
    )
    np.testing.assert_array_equal(before.values, after.values)


def test_a_training_tasks_own_row_is_not_seen_by_what_predicts_it(bilinear):
    embeddings, z = bilinear
    changed = z.copy()
    changed[4] += 5
    before, after = (
        predict_unseen(embeddings, rows, train=TRAIN, settings=settings(epochs=5)).values
        for rows in (z, changed)
    )
    np.testing.assert_array_equal(before[4], after[4])
    assert not np.allclose(before[TEST], after[TEST])


def test_the_same_seed_predicts_the_same_whatever_else_draws_numbers(bilinear):
    import torch

    first = fit_and_predict(*bilinear, train=TRAIN, settings=settings(epochs=3))
    torch.rand(5)
    np.testing.assert_array_equal(
        first, fit_and_predict(*bilinear, train=TRAIN, settings=settings(epochs=3))
    )
    assert not np.allclose(
        first, fit_and_predict(*bilinear, train=TRAIN, settings=settings(epochs=3, seeds=[1]))
    )


def test_several_seeds_are_averaged(bilinear):
    one, two = (
        fit_and_predict(*bilinear, train=TRAIN, settings=settings(epochs=3, seeds=[s]))
        for s in (0, 1)
    )
    both = fit_and_predict(*bilinear, train=TRAIN, settings=settings(epochs=3, seeds=[0, 1]))
    np.testing.assert_allclose(both, (one + two) / 2, rtol=1e-6)


def test_unknown_cells_of_z_are_masked(bilinear):
    embeddings, z = bilinear
    holes = z.copy()
    holes[0, :10], holes[:, 5] = np.nan, np.nan
    for offset in ("none", "column_mean"):
        predicted = fit_and_predict(
            embeddings, holes, train=TRAIN, settings=settings(epochs=3, offset=offset)
        )
        assert np.isfinite(predicted).all()


def test_shapes_that_do_not_fit_and_missing_vectors_are_refused(bilinear):
    embeddings, z = bilinear
    with pytest.raises(ValueError, match="shape"):
        fit_and_predict(embeddings, z[:, :-1], train=TRAIN, settings=settings())
    vectors = embeddings.example_vectors.copy()
    vectors[0] = np.nan
    broken = Embeddings(embeddings.task_vectors, vectors, embeddings.tasks, embeddings.example_ids)
    with pytest.raises(ValueError, match="embedding"):
        fit_and_predict(broken, z, train=TRAIN, settings=settings())
