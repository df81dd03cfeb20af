import json

import numpy as np
import pytest
import torch

from lethe.config.model_settings import LoRA, Pretraining
from lethe.engine import models
from lethe.errors import LetheError
from lethe.matrix import forgetting_matrix
from lethe.matrix.forgetting_matrix import Matrix
from lethe.matrix.rows import Row
from lethe.similarity import directions, embeddings
from lethe.similarity.association_files import read_associations
from lethe.similarity.embeddings import Embeddings, average_by_task
from lethe.similarity.projection import CountSketch, sketch_of


def test_associations_are_read_in_the_order_of_z(tmp_path):
    matrix = Matrix(np.arange(6.0).reshape(2, 3), ["a", "b"], ["x", "y", "z"])
    forgetting_matrix.write_matrix(tmp_path / "text.parquet", matrix)
    z = Matrix(np.zeros((2, 2)), ["b", "a"], ["z", "x"])
    read = read_associations({"text": tmp_path / "text.parquet"}, z)
    np.testing.assert_array_equal(read["text"], [[5, 3], [2, 0]])


@pytest.mark.parametrize(("task", "example"), [("c", "x"), ("a", "w")])
def test_an_association_that_lacks_a_task_or_example_is_named(tmp_path, task, example):
    forgetting_matrix.write_matrix(
        tmp_path / "text.parquet", Matrix(np.zeros((1, 1)), ["a"], ["x"])
    )
    with pytest.raises(LetheError, match=r"text.parquet.*(task|example)"):
        read_associations(
            {"text": tmp_path / "text.parquet"}, Matrix(np.zeros((1, 1)), [task], [example])
        )


def test_embeddings_come_back_as_they_were_written(tmp_path, upstream):
    rng = np.random.default_rng(0)
    vectors = {"a": rng.normal(size=(3, 5)), "b": rng.normal(size=(2, 5))}
    averaged = average_by_task(vectors, rng.normal(size=(4, 5)), upstream)
    embeddings.write_embeddings(tmp_path / "e.parquet", averaged)
    read = embeddings.read_embeddings(tmp_path / "e.parquet")
    np.testing.assert_allclose(read.task_vectors[1], vectors["b"].mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(read.example_vectors, averaged.example_vectors, rtol=1e-6)
    assert (read.tasks, read.example_ids) == (["a", "b"], ["e0", "e1", "e2", "e3"])


def test_cosines_ignore_length_and_a_vector_of_zeros_has_none():
    vectors = Embeddings(
        np.array([[2.0, 0]]), np.array([[5.0, 0], [0, 3], [0, 0]]), ["a"], list("xyz")
    )
    np.testing.assert_allclose(vectors.cosines().values, [[1, 0, np.nan]])


@pytest.mark.parametrize("content", [b"", b"no parquet"])
def test_files_that_are_none_are_named(tmp_path, content):
    path = tmp_path / "broken.parquet"
    path.write_bytes(content)
    for read in (
        embeddings.read_embeddings,
        lambda path: directions.read_direction(path, CountSketch([3], 2, 0)),
    ):
        with pytest.raises(LetheError, match="broken.parquet"):
            read(path)


def small_model():
    settings = Pretraining(hidden=16, layers=1, heads=2, vocabulary=300, context=32)
    return models.from_scratch("olmo", settings, 300, 0)


def test_a_direction_is_the_sketch_of_where_the_weights_went(tmp_path):
    base, tuned = small_model(), small_model()
    steps = [torch.randn_like(p) for p in tuned.parameters()]
    with torch.no_grad():
        for parameter, step in zip(tuned.parameters(), steps, strict=True):
            parameter += step
    sketch = sketch_of(base, 128, 1)
    directions.write_direction(
        tmp_path / "d.parquet", directions.weight_difference(base, tuned, sketch)
    )
    sketched = directions.read_direction(tmp_path / "d.parquet", sketch)
    np.testing.assert_allclose(sketched, sketch(steps).numpy(), rtol=1e-3, atol=1e-3)


def test_adapters_are_merged_before_the_difference_is_taken():
    base = small_model()
    tuned = models.add_lora(small_model(), LoRA(rank=2, targets=["q_proj"]), 0)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter += 0.1
    sketched = directions.weight_difference(base, tuned, sketch_of(base, 64, 0)).values
    assert np.abs(sketched).max() > 0


def test_a_direction_of_another_sketch_is_refused(tmp_path):
    sketch = CountSketch([3], 4, 0)
    direction = directions.Direction(np.zeros(4), directions.sketch_settings(sketch))
    directions.write_direction(tmp_path / "d.parquet", direction)
    for other in (CountSketch([3], 4, 1), CountSketch([3], 5, 0), CountSketch([4], 4, 0)):
        with pytest.raises(LetheError, match="d.parquet"):
            directions.read_direction(tmp_path / "d.parquet", other)


def row(**changes):
    about = {"eval_loss_before": 3.0, "eval_loss_after": 1.5, **changes}
    settings = json.loads('{"recipe": {"lr": 0.1}}')
    return Row(["x"], np.zeros(1), np.zeros(1), np.ones(1), settings, about)


def test_a_repeated_training_that_ends_elsewhere_is_refused():
    directions.check_same_training(row(), row(eval_loss_after=1.5004), "add")
    directions.check_same_training(row(eval_loss_after=np.nan), row(eval_loss_after=np.nan), "add")
    with pytest.raises(LetheError, match="'add'.*eval_loss_after"):
        directions.check_same_training(row(), row(eval_loss_after=1.6), "add")
    other = row()
    other.settings["recipe"]["lr"] = 0.2
    with pytest.raises(LetheError, match="settings"):
        directions.check_same_training(row(), other, "add")
