import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lethe.data.tokens import Tokens
from lethe.errors import LetheError
from lethe.similarity.gradients import inner_products, task_gradient
from lethe.similarity.projection import sketch_of


class Whole:
    """Keeps every entry: the sketch's inner products are then exact."""

    device = "cpu"

    def __call__(self, tensors):
        return torch.cat([tensor.flatten() for tensor in tensors])


def gradient(model, example):
    """The gradient by transformers' own forward pass and torch.autograd, nothing of ours."""
    logits = model(torch.tensor([example.ids])).logits[0, :-1]
    expected = torch.tensor(example.ids[1:])
    losses = F.cross_entropy(logits, expected, reduction="none")[example.start - 1 :]
    parameters = list(model.parameters())
    actual = torch.autograd.grad(losses.mean(), parameters, allow_unused=True)
    pairs = zip(actual, parameters, strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs])


def test_the_tasks_gradient_is_the_mean_of_its_examples_gradients(model, tokens):
    expected = torch.stack([gradient(model, example) for example in tokens[:-1]]).mean(dim=0)
    for tokens_per_batch in (1, 20, 1000):
        actual = Whole()(task_gradient(model, tokens, tokens_per_batch))
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)


def test_inner_products_are_those_of_torch_autograd(model, tokens):
    examples = [gradient(model, example) for example in tokens[:-1]]
    directions = torch.stack([examples[0], examples[3] - examples[1]])
    actual = inner_products(model, tokens, directions.numpy(), Whole())
    expected = (directions @ torch.stack(examples).T).numpy()
    np.testing.assert_allclose(actual[:, :-1], expected, rtol=1e-4, atol=1e-5)


def test_an_example_without_loss_has_no_inner_product(model, tokens):
    sketch = sketch_of(model, 64, 0)
    actual = inner_products(model, tokens, np.ones((2, 64), np.float32), sketch)
    assert np.isnan(actual[:, -1]).all() and np.isfinite(actual[:, :-1]).all()


def test_sketched_inner_products_are_near_the_exact_ones(model, tokens):
    exact = [gradient(model, example) for example in tokens[:-1]]
    sketch = sketch_of(model, 8192, 0)
    direction = sketch(task_gradient(model, tokens[:1], 100)).numpy()[None]
    actual = inner_products(model, tokens, direction, sketch)[0, :-1]
    norms = np.array([float(exact[0].norm() * g.norm()) for g in exact])
    expected = np.array([float(exact[0] @ g) for g in exact])
    assert (np.abs(actual - expected) < 5 * np.sqrt(2 / 8192) * norms).all()


def test_a_small_step_along_a_direction_changes_losses_as_the_inner_product_says(model, tokens):
    step = [0.1 * g for g in task_gradient(model, tokens[:2], 100)]
    predicted = inner_products(model, tokens[:5], Whole()(step)[None].numpy(), Whole())[0]
    move(model, step, 0.01)
    after = losses(model, tokens[:5])
    move(model, step, -0.02)
    before = losses(model, tokens[:5])
    move(model, step, 0.01)
    np.testing.assert_allclose((after - before) * 50, predicted, rtol=0.02, atol=1e-3)


def test_a_task_without_loss_is_refused(model):
    with pytest.raises(LetheError, match="carries loss"):
        task_gradient(model, [Tokens([1, 2], 2)], 10)


def losses(model, examples):
    actual = []
    with torch.no_grad():
        for example in examples:
            logits = model(torch.tensor([example.ids])).logits[0, :-1]
            actual.append(float(F.cross_entropy(logits, torch.tensor(example.ids[1:]))))
    return np.array(actual)


def move(model, step, scale):
    with torch.no_grad():
        for parameter, part in zip(model.parameters(), step, strict=True):
            parameter += scale * part
