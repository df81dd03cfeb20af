import pytest
import torch
from helpers import tiny

from lethe.config.model_settings import LoRA
from lethe.engine import models
from lethe.engine.interpolation import (
    base_weights,
    interpolate,
    interpolated,
)
from lethe.engine.scoring import score

EXAMPLES = tiny.tokens((20, 1), (11, 1))


def moved(model):
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    return model


def weights_of(model) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_the_ends_are_the_two_models_and_the_middle_lies_between():
    model = tiny.model("llama")
    base, first = base_weights(model), weights_of(model)
    last = weights_of(moved(model))
    with interpolated(model, base, 0.0):
        assert torch.equal(weights_of(model), first)
    with interpolated(model, base, 1.0):
        assert torch.equal(weights_of(model), last)
    with interpolated(model, base, 0.25):
        torch.testing.assert_close(weights_of(model), 0.75 * first + 0.25 * last)
    assert torch.equal(weights_of(model), last)
    assert base_weights(model, tiny.model("llama")).keys() == base.keys()


def test_a_share_of_adapters_is_that_share_of_the_change():
    model = models.add_lora(tiny.model("llama"), LoRA(rank=2, dropout=0.0), 0).eval()
    base = base_weights(model)
    assert base and all("lora_B" in name for name in base)
    layer = model.get_base_model().model.layers[0].mlp.up_proj
    moved(model)
    change = layer.get_delta_weight("default").clone()
    with interpolated(model, base, 0.25):
        torch.testing.assert_close(layer.get_delta_weight("default"), 0.25 * change)
    wanted = score(tiny.model("llama"), EXAMPLES, 100).losses
    with interpolated(model, base, 0.0):
        assert score(model, EXAMPLES, 100).losses.tobytes() == wanted.tobytes()


def test_several_shares_are_scored_from_one_fine_tune():
    model = tiny.model("olmo")
    base = base_weights(model)
    before = score(model, EXAMPLES, 100).losses
    moved(model)
    after = score(model, EXAMPLES, 100).losses
    losses = {}
    for share in (0.0, 0.5, 1.0):
        with interpolated(model, base, share):
            losses[share] = score(model, EXAMPLES, 100).losses
    assert losses[0.0].tobytes() == before.tobytes()
    assert losses[1.0].tobytes() == after.tobytes()
    assert not (losses[0.5] == before).any() and not (losses[0.5] == after).any()


def test_weights_of_another_model_are_refused():
    with pytest.raises(ValueError, match="does not have"):
        interpolate(tiny.model("llama"), base_weights(tiny.model("mpt")), 0.5)
