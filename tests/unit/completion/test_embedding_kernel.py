"""Column noise that is alike for examples with similar embeddings."""

import numpy as np
import pytest

from lethe.completion.embedding_kernel import EmbeddingGaussian
from lethe.completion.evaluation import evaluate
from lethe.completion.gaussian import Gaussian
from lethe.config.task_table import Task
from lethe.matrix.forgetting_matrix import Matrix

TASKS = 16
EXAMPLES = 240
CLUSTERS = 20


def clustered(seed=0):
    """Two factors, and noise that the examples of a cluster share; embeddings of the clusters."""
    rng = np.random.default_rng(seed)
    cluster = rng.integers(CLUSTERS, size=EXAMPLES)
    embeddings = rng.normal(size=(CLUSTERS, 6))[cluster] + 0.05 * rng.normal(size=(EXAMPLES, 6))
    rows = rng.normal(size=(TASKS, 2)) @ rng.normal(size=(2, EXAMPLES))
    rows += 0.8 * rng.normal(size=(TASKS, CLUSTERS))[:, cluster]
    return rows + 0.3 * rng.normal(size=rows.shape), embeddings


def rmse(method, row, index):
    hidden = np.setdiff1d(np.arange(EXAMPLES), index)
    return np.sqrt(np.square(method.predict(index, row[index]) - row)[hidden].mean())


def test_without_a_share_it_is_the_gaussian_method():
    z, embeddings = clustered()
    index = np.arange(0, EXAMPLES, 8)
    method = EmbeddingGaussian(embeddings, share=0.0).fit(z[1:])
    plain = Gaussian().fit(z[1:]).predict(index, z[0, index])
    np.testing.assert_allclose(method.predict(index, z[0, index]), plain, atol=1e-9)


def test_it_conditions_on_the_dense_covariance():
    """The same posterior mean from matrices as large as the row."""
    z, embeddings = clustered()
    index = np.arange(0, EXAMPLES, 8)
    method = EmbeddingGaussian(embeddings, share=0.3).fit(z[1:])
    model = Gaussian().fit(z[1:]).model_
    share, length_scale = method.kernel_settings(len(index))
    assert share == 0.3
    prior, noise = model.parts
    columns = np.vstack([z[1:], np.ones(EXAMPLES)])
    scaled = (embeddings - embeddings.mean(axis=0)) / embeddings.std(axis=0)
    distances = np.linalg.norm(scaled[:, None] - scaled, axis=2)
    median = np.median(distances[np.triu_indices(EXAMPLES, k=1)])
    kernel = np.exp(-np.square(distances / (length_scale * median)) / 2)
    deviations = np.sqrt(noise.variance(z[1:]))
    shared = deviations[:, None] * kernel * deviations
    own = np.diag(np.square(deviations))
    directions = prior.basis @ columns
    factor = model.choose(len(index))
    smooth = directions.T @ directions + factor * share * shared
    covariance = (smooth + factor * (1 - share) * own)[np.ix_(index, index)]
    mean = prior.mean @ columns
    expected = mean + smooth[:, index] @ np.linalg.solve(covariance, z[0, index] - mean[index])
    np.testing.assert_allclose(method.predict(index, z[0, index]), expected, atol=1e-6)


def test_embeddings_that_say_something_help_and_others_are_ignored():
    z, embeddings = clustered()
    index = np.arange(0, EXAMPLES, 4)
    plain = Gaussian().fit(z[2:])
    method = EmbeddingGaussian(embeddings).fit(z[2:])
    assert method.kernel_settings(len(index))[0] > 0
    for row in z[:2]:
        assert rmse(method, row, index) < 0.8 * rmse(plain, row, index)
    shuffled = np.random.default_rng(1).normal(size=embeddings.shape)
    useless = EmbeddingGaussian(shuffled).fit(z[2:])
    assert useless.kernel_settings(len(index))[0] <= 0.15
    for row in z[:2]:
        assert rmse(useless, row, index) < 1.03 * rmse(plain, row, index)


def test_an_example_without_an_embedding_and_missing_cells_are_predicted():
    z, embeddings = clustered()
    embeddings[5] = np.nan
    z[3, :60] = np.nan
    index = np.arange(0, EXAMPLES, 8)
    method = EmbeddingGaussian(embeddings).fit(z[1:])
    assert np.isfinite(method.predict(index, z[0, index])).all()
    with_missing_probe = z[0, index].copy()
    with_missing_probe[2] = np.nan
    assert np.isfinite(method.predict(index, with_missing_probe)).all()
    no_vector = EmbeddingGaussian(np.full((EXAMPLES, 3), np.nan)).fit(z[1:])
    plain = Gaussian().fit(z[1:]).predict(index, z[0, index])
    np.testing.assert_allclose(no_vector.predict(index, z[0, index]), plain, atol=1e-9)
    assert not method.has_intervals


def test_two_tasks_or_no_probe_leave_the_gaussian_method():
    z, embeddings = clustered()
    nothing = np.array([], dtype=int)
    method = EmbeddingGaussian(embeddings).fit(z[:2])
    assert method.kernel_settings(10)[0] == 0
    plain = Gaussian().fit(z[:2]).predict(nothing, np.array([]))
    np.testing.assert_allclose(method.predict(nothing, np.array([])), plain, atol=1e-9)


def test_arguments_that_do_not_fit_are_refused():
    z, embeddings = clustered()
    with pytest.raises(ValueError, match="embeddings of 239 examples, but Z has 240"):
        EmbeddingGaussian(embeddings[1:]).fit(z)
    with pytest.raises(ValueError, match=r"expected \(N, D\)"):
        EmbeddingGaussian(embeddings[:, 0])
    with pytest.raises(ValueError, match="share 2 is not in 0..1"):
        EmbeddingGaussian(embeddings, share=2)


@pytest.mark.parametrize("binary", [False, True])
def test_an_evaluation_compares_it_and_needs_one_vector_per_example(binary):
    z, embeddings = clustered()
    values = (z > 0.5).astype(float) if binary else z
    names = [f"t{i}" for i in range(TASKS)]
    tasks = {}
    for number, name in enumerate(names):
        tasks[name] = Task(name=name, group="g", split="train" if number < 12 else "test")
    matrix = Matrix(values, names, [f"e{i}" for i in range(EXAMPLES)])
    settings = {"methods": ["gaussian"], "probes": [40], "seeds": [0], "threshold": 0.5}
    lines = evaluate(matrix, tasks, **settings, embeddings=embeddings)
    errors = {}
    f1 = {}
    for line in lines:
        if line["seed"] == "all" and line["metric"] == "rmse":
            errors[line["method"]] = line["value"]
        if line["seed"] == "all" and line["metric"] == "f1":
            f1[line["method"]] = line["value"]
    assert list(errors) == ["gaussian", "gaussian_embeddings"]
    assert errors["gaussian_embeddings"] < errors["gaussian"]
    assert f1["gaussian_embeddings"] > 0.3
    with pytest.raises(ValueError, match="embeddings of 239 examples, Z has 240"):
        evaluate(matrix, tasks, **settings, embeddings=embeddings[1:])
