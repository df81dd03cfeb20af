"""A GPU gives what a CPU gives, within the noise of its arithmetic."""

import numpy as np
import pytest
import torch
from helpers import tiny

from lethe import models
from lethe.config.models import LoRA, Recipe, Scoring
from lethe.forgetting import Job, base_losses
from lethe.scoring import score
from lethe.training import fine_tune

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
# Nats a token. float32: other orders of addition. bfloat16: eight bits of a logit of about 8.
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1}
SHAPES = [(9, 1), (23, 14), (17, 16), (2, 1), (tiny.CONTEXT, 1)]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_losses_agree_with_those_of_the_cpu(model_folders, architecture, dtype):
    examples = tiny.tokens(*SHAPES)
    expected = score(models.load(model_folders[architecture])[0], examples, 4096).losses
    model, _ = models.load(model_folders[architecture], dtype, gpu=True)
    assert next(model.parameters()).is_cuda
    found = score(model, examples, 4096).losses
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("lora", [None, LoRA(rank=2, dropout=0)])
def test_a_fine_tune_learns_what_it_learns_on_the_cpu(dtype, lora):
    recipe = Recipe(steps=10, batch=4, lr=1e-2, warmup_steps=2, dtype=dtype)
    examples = tiny.tokens(*[(20, 4)] * 4) * 10
    trained = {}
    for device in ("cpu", "cuda"):
        model = tiny.model("llama", scale=1)
        model = (model if lora is None else models.add_lora(model, lora, seed=0)).to(device)
        trained[device] = fine_tune(model, examples, recipe, "t")
    assert trained["cuda"].last_loss < trained["cuda"].first_loss
    for key in ("first_loss", "last_loss"):
        expected = getattr(trained["cpu"], key)
        assert getattr(trained["cuda"], key) == pytest.approx(expected, abs=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_fine_tune_that_changes_nothing_forgets_exactly_nothing(model_folders, dtype):
    card, upstream = model_folders["olmo"], tiny.upstream(16)
    scoring = Scoring(max_tokens=24, tokens_per_batch=100, dtype=dtype)
    base = base_losses(*models.load(card, dtype, gpu=True), upstream, {"model": card}, scoring)
    recipe = Recipe(steps=3, batch=4, lr=0.0, max_tokens=32, dtype=dtype)
    job = Job(card, base, tiny.pairs(20), tiny.pairs(6, seed=2), recipe, scoring, gpu=True)
    *_, row = job.run(upstream)
    np.testing.assert_array_equal(row.forgetting, np.zeros(16, np.float32))
