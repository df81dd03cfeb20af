"""A GPU gives what a CPU gives, within the noise of its arithmetic."""

import numpy as np
import pytest
import torch
from helpers import shared, tiny

from lethe.config.model_settings import LoRA, Recipe, Scoring
from lethe.engine import models
from lethe.engine.generation import generate
from lethe.engine.reader import Reader
from lethe.engine.scoring import score
from lethe.engine.training import fine_tune
from lethe.jobs import launch
from lethe.matrix import rows
from lethe.measure.forgetting import Job, base_losses

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
    model, _ = models.load(model_folders[architecture], dtype, gpus=1)
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
    base = base_losses(Reader.load(card, scoring, gpus=1), upstream, {"model": card})
    recipe = Recipe(steps=3, batch=4, lr=0.0, max_tokens=32, dtype=dtype)
    job = Job(card, base, tiny.pairs(20), tiny.pairs(6, seed=2), recipe, scoring, gpus=1)
    *_, row = job.run(upstream)
    np.testing.assert_array_equal(row.forgetting, np.zeros(16, np.float32))


def test_answers_are_those_of_the_cpu(model_folders):
    prompts = [example.ids for example in tiny.tokens(*SHAPES)]
    said = {}
    for gpus in (0, 1):
        model, tokenizer = models.load(model_folders["llama"], gpus=gpus)
        said[gpus] = generate(model, tokenizer, [ids[:20] for ids in prompts], 5, 100)
    assert said[1] == said[0]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are no two CUDA devices")
def test_two_gpus_share_a_model(model_folders, tmp_path):
    card, scoring = model_folders["llama"], Scoring(max_tokens=24, tokens_per_batch=40)
    base = base_losses(Reader.load(card, scoring, gpus=1), shared.upstream(), {"model": card})
    rows.write_row(tmp_path / "llama-base.parquet", base)
    found = {}
    for processes in (1, 2):
        recipe = Recipe(steps=5, batch=4, lr=3e-3, max_tokens=32, processes=processes)
        arguments = {"folder": tmp_path, "cards": {"llama": card}, "kill_at": 0, "answers": {}}
        arguments |= {"recipe": recipe.model_dump(), "scoring": scoring.model_dump()}
        if processes == 1:
            shared.measure(**arguments, gpus=1)
        else:
            launch.run_in_shards(shared.measure, str(tmp_path / "log"), 2, **arguments, gpus=2)
        found[processes] = rows.read_row(tmp_path / "llama.parquet").loss_after
    np.testing.assert_allclose(found[2], found[1], rtol=0, atol=TOLERANCE["float32"])


def test_weights_in_4_bits_lack_no_tensor(model_folders):
    pytest.importorskip("bitsandbytes")
    model, _ = models.load_in_4_bits(model_folders["llama"], torch.bfloat16)
    assert model.is_loaded_in_4bit
