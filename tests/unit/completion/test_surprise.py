"""Additive and KNN agree with scikit-surprise, whose baselines the paper uses."""

import numpy as np
import pytest

from lethe.completion import METHODS

surprise = pytest.importorskip("surprise", reason="scikit-surprise is not installed")
pd = pytest.importorskip("pandas")

# scikit-surprise learns from the new row's probes too, this library from the training rows only:
# 20 of 3,220 cells move the example means by up to 1 / 16 of a residual.
TOLERANCE = 0.02
ALS = {"method": "als", "n_epochs": 100, "reg_u": 1e-9, "reg_i": 1e-9}
RNG = np.random.default_rng(0)
Z = 0.1 * (RNG.normal(size=(17, 2)) @ RNG.normal(size=(2, 200)) + RNG.normal(size=(17, 1)))
INDEX = np.sort(RNG.choice(200, 20, replace=False))


def by_surprise(algorithm):
    known = np.ones_like(Z, dtype=bool)
    known[-1] = False
    known[-1, INDEX] = True
    rows, columns = np.nonzero(known)
    frame = pd.DataFrame({"task": rows, "example": columns, "z": Z[rows, columns]})
    reader = surprise.Reader(rating_scale=(-100, 100))
    algorithm.fit(surprise.Dataset.load_from_df(frame, reader).build_full_trainset())
    return np.array([algorithm.predict(16, j).est for j in range(200)])


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (
            METHODS["additive"](ridge=0.0),
            lambda: surprise.BaselineOnly(bsl_options=ALS, verbose=False),
        ),
        (
            METHODS["knn"](),
            lambda: surprise.KNNBaseline(
                k=40, sim_options={"name": "msd"}, bsl_options=ALS, verbose=False
            ),
        ),
    ],
    ids=["additive", "knn"],
)
def test_predictions_are_those_of_scikit_surprise(ours, theirs):
    predicted, expected = ours.fit(Z[:-1]).predict(INDEX, Z[-1, INDEX]), by_surprise(theirs())
    hidden = np.setdiff1d(np.arange(200), INDEX)
    assert np.abs(predicted - expected)[hidden].max() < TOLERANCE
    assert np.abs(predicted - expected)[hidden].max() < 0.2 * Z[-1].std()
