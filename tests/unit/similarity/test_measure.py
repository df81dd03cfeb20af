import numpy as np
import pytest
import torch
from helpers import shared

from lethe.config.model_settings import Recipe, Scoring
from lethe.data.examples import Example, UpstreamExample
from lethe.engine import models
from lethe.errors import LetheError
from lethe.matrix import rows
from lethe.measure.forgetting import base_losses
from lethe.similarity import directions
from lethe.similarity.measure import ModelExamples, first_order
from lethe.similarity.projection import sketch_of


@pytest.fixture
def examples(model, tasks, upstream):
    texts = [example.example.text for example in upstream] * 5
    tokenizer = models.train_tokenizer(texts, 300)
    recipe, scoring = Recipe(max_tokens=16), Scoring(max_tokens=12)
    return ModelExamples(model, tokenizer, tasks, upstream, recipe, scoring)


def test_an_upstream_example_that_is_the_task_itself_is_nearest_to_it(examples, tasks):
    pair = tasks["rivers"][0]
    tasks["rivers"] = [pair]
    examples.upstream.append(UpstreamExample("same", "d", "heldout", pair))
    sketch = sketch_of(examples.model, 2048, 0)
    found = [examples.representations().cosines(), first_order(examples, ["gradient"], {}, sketch)]
    assert found[0].values[0].argmax() == 4
    assert np.nanargmax(found[1]["gradient"].values[0]) == 4
    assert found[0].tasks == found[1]["gradient"].tasks == ["rivers", "stories"]
    assert found[1]["gradient"].example_ids[-1] == "same"


def test_directions_and_gradients_are_told_apart(examples, tmp_path):
    sketch = sketch_of(examples.model, 256, 0)
    gradients = examples.task_gradients(sketch)
    moved = {}
    for task, values in zip(examples.tasks, gradients, strict=True):
        moved[task] = tmp_path / f"{task}.parquet"
        direction = directions.Direction(-3 * values, directions.settings_of(sketch))
        directions.write(moved[task], direction)
    found = first_order(examples, ["weight_difference", "gradient"], moved, sketch)
    expected = -3 * found["gradient"].values
    np.testing.assert_allclose(found["weight_difference"].values, expected, rtol=1e-3, atol=1e-4)
    only = first_order(examples, ["weight_difference"], moved, sketch)
    assert list(only) == ["weight_difference"]


@pytest.mark.parametrize("dtype", ["float32", "autocast"])
def test_a_direction_is_that_of_the_training_its_row_was_measured_after(
    model_folders, tmp_path, dtype
):
    card, scoring = model_folders["llama"], {"max_tokens": 24, "dtype": dtype}
    model, tokenizer = models.load(card)
    settings = {"model": card, "scoring": Scoring(**scoring).model_dump()}
    base = base_losses(model, tokenizer, shared.upstream(), settings, Scoring(**scoring))
    rows.write(tmp_path / "llama-base.parquet", base)
    recipe = {"steps": 3, "batch": 4, "lr": 1e-2, "max_tokens": 32}
    job = shared.job(tmp_path, card, "llama", recipe, scoring, 0)
    tuned, _, row = job.run(shared.upstream())
    moved = directions.measured(job, row, "t", {"dims": 64, "seed": 0})
    expected = directions.difference(model, tuned, sketch_of(model, 64, 0))
    np.testing.assert_array_equal(moved.values, expected.values)
    assert np.abs(moved.values).max() > 0


def test_nothing_asked_for_takes_no_gradient(examples, monkeypatch):
    monkeypatch.setattr(torch.autograd, "grad", None)
    sketch = sketch_of(examples.model, 16, 0)
    assert first_order(examples, ["representation"], {}, sketch) == {}


def test_a_task_without_loss_is_named(examples):
    examples.tasks["empty"] = [Example("a question", "")]
    with pytest.raises(LetheError, match="'empty'"):
        examples.task_gradients(sketch_of(examples.model, 16, 0))
