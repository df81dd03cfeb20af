import numpy as np
import pytest
import torch
from helpers import shared

from lethe.config.model_settings import Recipe, Scoring
from lethe.data.examples import Example, UpstreamExample
from lethe.engine import models
from lethe.engine.reader import Reader
from lethe.errors import LetheError
from lethe.matrix import rows
from lethe.measure.forgetting import base_losses
from lethe.similarity import directions
from lethe.similarity.model_associations import ModelExamples, first_order
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
    cosines = examples.representations().cosines()
    gradient = first_order(examples, ["gradient"], direction_files={}, sketch=sketch)["gradient"]
    assert cosines.values[0].argmax() == 4
    assert np.nanargmax(gradient.values[0]) == 4
    assert cosines.tasks == gradient.tasks == ["rivers", "stories"]
    assert gradient.example_ids[-1] == "same"


def test_directions_and_gradients_are_separate_associations(examples, tmp_path):
    sketch = sketch_of(examples.model, 256, 0)
    gradients = examples.task_gradients(sketch)
    files = {}
    for task, values in zip(examples.tasks, gradients, strict=True):
        files[task] = tmp_path / f"{task}.parquet"
        direction = directions.Direction(-3 * values, directions.sketch_settings(sketch))
        directions.write_direction(files[task], direction)
    names = ["weight_difference", "gradient"]
    associations = first_order(examples, names, direction_files=files, sketch=sketch)
    expected = -3 * associations["gradient"].values
    np.testing.assert_allclose(
        associations["weight_difference"].values, expected, rtol=1e-3, atol=1e-4
    )
    only = first_order(examples, names[:1], direction_files=files, sketch=sketch)
    assert list(only) == ["weight_difference"]


@pytest.mark.parametrize("dtype", ["float32", "autocast"])
def test_a_direction_is_that_of_the_training_its_row_was_measured_after(
    model_folders, tmp_path, dtype
):
    card, scoring = model_folders["llama"], {"max_tokens": 24, "dtype": dtype}
    model, tokenizer = models.load(card)
    settings = {"model": card, "scoring": Scoring(**scoring).model_dump()}
    reader = Reader(model, tokenizer, Scoring(**scoring))
    base = base_losses(reader, shared.upstream(), settings)
    rows.write_row(tmp_path / "llama-base.parquet", base)
    recipe = {"steps": 3, "batch": 4, "lr": 1e-2, "max_tokens": 32}
    job = shared.job(tmp_path, card, "llama", recipe, scoring, 0)
    tuned, _, row = job.run(shared.upstream())
    direction = directions.measure_direction(job, row, "t", projection={"dims": 64, "seed": 0})
    expected = directions.weight_difference(model, tuned, sketch_of(model, 64, 0))
    np.testing.assert_array_equal(direction.values, expected.values)
    assert np.abs(direction.values).max() > 0


def test_no_gradient_is_taken_for_other_associations(examples, monkeypatch):
    monkeypatch.setattr(torch.autograd, "grad", None)
    sketch = sketch_of(examples.model, 16, 0)
    assert first_order(examples, ["representation"], direction_files={}, sketch=sketch) == {}


def test_a_task_without_loss_is_named(examples):
    examples.tasks["empty"] = [Example("a question", "")]
    with pytest.raises(LetheError, match="'empty'"):
        examples.task_gradients(sketch_of(examples.model, 16, 0))
