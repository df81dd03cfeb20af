import numpy as np
import pytest
import torch

from lethe.similarity.projection import CountSketch

DIMS, SEEDS = 64, 3000


@pytest.fixture(scope="module")
def pairs():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(500, generator=generator)
    return x, 0.3 * x + torch.randn(500, generator=generator)


@pytest.fixture(scope="module")
def estimates(pairs):
    x, y = (torch.split(vector, [300, 200]) for vector in pairs)
    sketches = [CountSketch([300, 200], DIMS, seed) for seed in range(SEEDS)]
    return np.array([float(sketch(x) @ sketch(y)) for sketch in sketches])


def test_inner_products_of_sketches_are_unbiased(pairs, estimates):
    error = estimates.std() / np.sqrt(SEEDS)
    assert abs(estimates.mean() - float(pairs[0] @ pairs[1])) < 4 * error


def test_their_variance_is_that_of_a_dense_random_projection(pairs, estimates):
    x, y = pairs
    bound = float(x @ x * (y @ y) + (x @ y) ** 2) / DIMS
    assert 0.9 * bound < estimates.var() < 1.1 * bound


def test_vectors_that_are_structured_alike_do_not_collide_more_often():
    # One entry in every `dims`: what folding a vector by position would get wrong.
    x, y = torch.zeros(64 * DIMS), torch.zeros(64 * DIMS)
    x[::DIMS], y[::DIMS] = 1, torch.tensor([1.0, -1.0]).repeat(32)
    products = []
    for seed in range(300):
        sketch = CountSketch([64 * DIMS], DIMS, seed)
        products.append(float(sketch([x]) @ sketch([y])))
    assert np.var(products) < 1.3 * 64 * 64 / DIMS


def test_a_sketch_is_linear_and_the_same_for_the_same_seed():
    x, y = torch.randn(50), torch.randn(50)
    sketch, again = CountSketch([50], 16, 3), CountSketch([50], 16, 3)
    torch.testing.assert_close(sketch([2 * x + y]), 2 * again([x]) + again([y]))
    assert not torch.equal(sketch([x]), CountSketch([50], 16, 4)([x]))


def test_tensors_of_another_model_are_refused():
    with pytest.raises(ValueError, match="entries"):
        CountSketch([5, 6], 8, 0)([torch.zeros(5), torch.zeros(7)])
    with pytest.raises(ValueError):
        CountSketch([5, 6], 8, 0)([torch.zeros(5)])
