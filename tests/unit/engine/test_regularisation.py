import pytest
import torch
from helpers import tiny

from lethe.config.model_settings import Recipe
from lethe.data.tokens import Tokens
from lethe.engine.batches import collate, token_losses
from lethe.engine.regularisation import Anchor, diagonal_fisher
from lethe.engine.training import fine_tune
from lethe.errors import LetheError

UPSTREAM = tiny.tokens((20, 1), (11, 1), (30, 1), seed=5)
TASK = tiny.tokens(*[(20, 4)] * 32)


def recipe(**changes) -> Recipe:
    return Recipe(**{"steps": 8, "batch": 4, "lr": 1e-2, "warmup_steps": 0} | changes)


def test_the_fisher_information_is_the_mean_of_squared_gradients():
    model = tiny.model("llama")
    parameters = list(model.parameters())
    wanted = [torch.zeros_like(p) for p in parameters]
    for example in UPSTREAM:
        model.zero_grad()
        token_losses(model, collate([example]))[0].mean().backward()
        for total, parameter in zip(wanted, parameters, strict=True):
            total += parameter.grad.square() / len(UPSTREAM)
    for found, value in zip(diagonal_fisher(model, parameters, UPSTREAM), wanted, strict=True):
        torch.testing.assert_close(found, value)


def test_nothing_to_measure_on_is_an_error():
    model = tiny.model("llama")
    with pytest.raises(LetheError, match="recipe.ewc: no replayable upstream example has a token"):
        diagonal_fisher(model, list(model.parameters()), [Tokens([3], 1)])


@pytest.mark.parametrize("kind", ["l2", "ewc"])
def test_the_pull_is_the_gradient_of_the_penalty(kind):
    model = tiny.model("llama")
    anchor = Anchor(model, recipe(**{kind: 0.5}), UPSTREAM)
    moved = [torch.randn_like(p) for p in model.parameters()]
    for parameter, step in zip(model.parameters(), moved, strict=True):
        parameter.data += step
    penalty = 0.0
    for i, parameter in enumerate(model.parameters()):
        scale = 1.0 if kind == "l2" else anchor.fisher[i]
        penalty = penalty + 0.25 * (scale * (parameter - anchor.base[i]).square()).sum()
    wanted = torch.autograd.grad(penalty, list(model.parameters()))
    anchor.pull()
    for parameter, gradient in zip(model.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def distance(model, base, scales) -> float:
    """Squared distance, each parameter's by its scale."""
    pairs = zip(model.parameters(), base.parameters(), scales, strict=True)
    return sum((scale * (a - b).square()).sum().item() for a, b, scale in pairs)


@pytest.mark.parametrize("changes", [{"l2": 1.0}, {"ewc": 1e3}])
def test_a_fine_tune_that_is_held_stays_nearer_to_its_base(changes):
    """By L2 in every weight alike, by EWC in those that upstream examples depend on."""
    base, free, held = (tiny.model("llama", scale=1) for _ in range(3))
    parameters = list(base.parameters())
    fisher = diagonal_fisher(base, parameters, UPSTREAM)
    scales = fisher if "ewc" in changes else [torch.ones_like(p) for p in parameters]
    fine_tune(free, TASK, recipe(), "t")
    fine_tune(held, TASK, recipe(**changes), "t", upstream=UPSTREAM)
    assert 0 < distance(held, base, scales) < 0.8 * distance(free, base, scales)
