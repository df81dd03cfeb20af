import numpy as np
import pytest
from helpers.streamed import CHUNK, holed, values, write

from lethe.completion import streamed
from lethe.completion.additive import Additive, Affine
from lethe.completion.biases import fill
from lethe.completion.gaussian import Gaussian
from lethe.completion.local import LocalGaussian
from lethe.completion.probes import a_optimal
from lethe.matrix import streams


@pytest.fixture
def z():
    return values()


@pytest.mark.parametrize(
    ("method", "gaps"),
    [(Gaussian, False), (Gaussian, True), (Affine, True), (Additive, False), (LocalGaussian, True)],
)
def test_streamed_completion_is_the_one_in_memory(tmp_path, z, method, gaps):
    z = holed(z) if gaps else z
    train, test = z[:7], z[7:]
    index = np.array([3, 12, 201, 500, 650])
    values = np.nan_to_num(test[:, index])
    dense = method().fit(train).predict(index, values)
    stream = streams.Stream(write(tmp_path, z), [f"t{i}" for i in range(7)], CHUNK)
    predicted = streamed.StreamedCompletion(method(), stream).predict(index, values)
    np.testing.assert_allclose(predicted, dense, atol=1e-7)


def test_examples_that_no_task_knows_are_no_evidence_and_no_probes(tmp_path, z):
    z = z.copy()
    z[:, ::3] = np.nan
    known = np.flatnonzero(np.isfinite(z).all(axis=0))
    stream = streams.Stream(write(tmp_path, z), [f"t{i}" for i in range(7)], CHUNK)
    fitted = streamed.StreamedCompletion(Gaussian(), stream)
    index = known[[2, 40, 111]]
    dense = Gaussian().fit(z[:7, known]).predict(np.array([2, 40, 111]), z[7:, index])
    np.testing.assert_allclose(fitted.predict(index, z[7:, index])[:, known], dense, atol=1e-7)
    assert np.isin(streamed.choose_streamed_probes(fitted, 12), known).all()
    scores = streamed.probe_scores(fitted, 5)
    assert (scores[known] > 0).all() and not np.delete(scores, known).any()


def test_gaps_are_filled_as_in_memory(tmp_path, z):
    z = holed(z)
    stream = streams.Stream(write(tmp_path, z), chunk=CHUNK)
    filled = np.concatenate(
        [*map(streamed.StreamedCompletion(Gaussian(), stream).filling_, stream)], 1
    )
    np.testing.assert_allclose(filled, fill(z.astype(float), np.isfinite(z)), atol=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_task_effects_with_gaps_are_those_in_memory(tmp_path, seed):
    # Rounding leaves the null direction of the normal equations an eigenvalue, or none.
    rng = np.random.default_rng(seed)
    z = rng.normal(0, 0.1, (10, 2000)) + rng.normal(0, 1, (10, 1))
    z[rng.random(z.shape) < 0.1] = np.nan
    z = z.astype(np.float32)
    stream = streams.Stream(write(tmp_path, z), chunk=CHUNK)
    filling = streamed.StreamedCompletion(Gaussian(), stream).filling_
    np.testing.assert_allclose(filling(z), fill(z.astype(float), np.isfinite(z)), atol=1e-6)


def test_probe_scores_are_the_variance_that_a_probe_takes_off(tmp_path, z):
    stream = streams.Stream(write(tmp_path, z[:, :90]), chunk=CHUNK)
    fitted = streamed.StreamedCompletion(Gaussian(noise=1.0), stream)
    scores = streamed.probe_scores(fitted, probes=5)
    prior, noise = fitted.model_.parts
    features = prior.basis @ np.vstack([z[:, :90], np.ones(90)])
    covariance = features.T @ features  # over examples, as no streamed result may need it
    variances = noise.variance(z[:, :90].astype(float))
    for j in (0, 17, 89):
        after = covariance - np.outer(covariance[j], covariance[j]) / (
            covariance[j, j] + variances[j]
        )
        assert scores[j] == pytest.approx(np.trace(covariance - after), rel=1e-6)


@pytest.mark.parametrize("gaps", [False, True])
def test_probes_of_a_small_matrix_are_those_chosen_in_memory(tmp_path, z, gaps):
    z = holed(z) if gaps else z
    stream = streams.Stream(write(tmp_path, z), chunk=CHUNK)
    fitted = streamed.StreamedCompletion(Gaussian(), stream)
    found = streamed.choose_streamed_probes(fitted, 7)
    filled = fill(z.astype(float), np.isfinite(z))
    np.testing.assert_array_equal(found, a_optimal(filled, np.arange(z.shape[1]), 7))


def test_more_probes_than_were_drawn_are_refused(tmp_path, z):
    stream = streams.Stream(write(tmp_path, z), chunk=CHUNK)
    fitted = streamed.StreamedCompletion(Gaussian(), stream)
    with pytest.raises(ValueError, match="examples were drawn"):
        streamed.choose_streamed_probes(fitted, z.shape[1] + 1)
