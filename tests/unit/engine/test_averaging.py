import pytest
import torch
from helpers import tiny

from lethe.config.model_settings import LoRA, Recipe
from lethe.engine import models
from lethe.engine.averaging import WeightAverage
from lethe.engine.checkpoints import Checkpoint
from lethe.engine.training import fine_tune

EXAMPLES = tiny.tokens(*[(12, 4)] * 24)


def recipe(**changes) -> Recipe:
    return Recipe(**{"steps": 6, "batch": 4, "lr": 1e-2, "warmup_steps": 1} | changes)


def weights_of(model) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_the_average_is_that_of_the_base_and_all_steps():
    model = tiny.model("llama")
    expected = weights_of(model)
    average = WeightAverage(model, 0.75)
    for seed in range(3):
        torch.manual_seed(seed)
        for parameter in model.parameters():
            parameter.data += torch.randn_like(parameter)
        average.update()
        expected = 0.75 * expected + 0.25 * weights_of(model)
    average.apply()
    torch.testing.assert_close(weights_of(model), expected)


def test_a_fine_tune_with_an_average_ends_nearer_to_its_base():
    base = weights_of(tiny.model("llama"))
    distances = []
    for ema in (None, 0.5, 0.9):
        model = tiny.model("llama")
        fine_tune(model, EXAMPLES, recipe(ema=ema), "t")
        distances.append((weights_of(model) - base).norm().item())
    assert distances[0] > distances[1] > distances[2] > 0


def test_adapters_are_averaged_alone():
    model = models.add_lora(tiny.model("llama"), LoRA(rank=2, dropout=0.0), 0)
    names = [name.removeprefix("average/") for name in WeightAverage(model, 0.5).tensors()]
    assert names and all("lora" in name for name in names)


@pytest.mark.parametrize("step", [1, 4])
def test_stopped_and_resumed_it_ends_with_the_same_bytes(tmp_path, monkeypatch, step):
    def trained(checkpoint):
        model = tiny.model("olmo")
        fine_tune(model, EXAMPLES, recipe(ema=0.5), "t", checkpoint)
        return weights_of(model)

    calls = []

    def leave(_checkpoint, _progress):
        calls.append(1)
        if len(calls) == step:
            raise KeyboardInterrupt

    expected = trained(Checkpoint())
    monkeypatch.setattr(Checkpoint, "due", lambda checkpoint: True)
    monkeypatch.setattr(Checkpoint, "leave_if_asked", leave)
    with pytest.raises(KeyboardInterrupt):
        trained(Checkpoint(tmp_path))
    monkeypatch.undo()
    assert torch.equal(trained(Checkpoint(tmp_path)), expected)


def test_recipes_without_an_average_stay_as_they_were():
    assert "ema" not in Recipe().model_dump() and "prompt_kl" not in Recipe().model_dump()
    changed = Recipe(ema=0.9, prompt_kl=1.0)
    assert Recipe(**changed.model_dump()) == changed
