from dataclasses import replace

import numpy as np
import pytest
from helpers import tiny

from lethe.config.model_settings import Recipe, Scoring
from lethe.engine.reader import Reader
from lethe.errors import RowError
from lethe.matrix import rows
from lethe.measure import repeats
from lethe.measure.forgetting import Job, base_losses

UPSTREAM = tiny.upstream(16)
SCORING = Scoring(max_tokens=24, tokens_per_batch=100)
RECIPE = Recipe(steps=4, batch=4, lr=1e-2, warmup_steps=1, max_tokens=32, seed=7)


@pytest.fixture(scope="module")
def job(model_folders):
    card = model_folders["olmo"]
    shared = {"model": card, "scoring": SCORING.model_dump()}
    base = base_losses(Reader.load(card, SCORING), UPSTREAM, shared)
    return Job(card, base, tiny.pairs(20, seed=1), tiny.pairs(6, seed=2), RECIPE, SCORING)


@pytest.fixture(scope="module")
def written(job, tmp_path_factory):
    """The row of a task and its repeats: seeds 1 and 2, each scored twice."""
    folder = tmp_path_factory.mktemp("repeats")
    *_, row = job.run(UPSTREAM)
    rows.write_row(folder / "say.parquet", row)
    paths = []
    for seed in (1, 2):
        for number, found in enumerate(repeats.repeat(job, UPSTREAM, seed, 1, "say")):
            paths.append(folder / f"say-seed{seed}-{number}.parquet")
            rows.write_row(paths[-1], found)
    return folder / "say.parquet", paths


def test_a_repeat_with_the_same_seed_is_the_row_to_the_bit(job):
    *_, row = job.run(UPSTREAM)
    (again,) = repeats.repeat(job, UPSTREAM, 0, 0, "say")
    np.testing.assert_array_equal(again.loss_after, row.loss_after)


def test_another_seed_forgets_otherwise_and_says_so(job):
    *_, row = job.run(UPSTREAM)
    (other,) = repeats.repeat(job, UPSTREAM, 1, 0, "say")
    assert np.abs(other.forgetting - row.forgetting).max() > 1e-4
    assert other.settings["recipe"]["seed"] == 8
    assert (other.about["task"], other.about["seed"]) == ("say", 1)


def test_scoring_again_in_other_batches_changes_no_more_than_rounding(job):
    first, again = repeats.repeat(job, UPSTREAM, 1, 1, "say")
    assert again.about["tokens_per_batch"] == 50
    np.testing.assert_allclose(again.loss_after, first.loss_after, atol=1e-4)
    np.testing.assert_array_equal(again.loss_before, first.loss_before)


def test_repeats_are_gathered_by_task_and_by_training(written):
    row, paths = written
    trainings, measurements, ids = repeats.gather({"say": row}, paths)
    assert ids == [example.example_id for example in UPSTREAM]
    assert trainings["say"].shape == (3, 16)
    np.testing.assert_array_equal(trainings["say"][0], rows.read_row(row).forgetting)
    assert [group.shape for group in measurements] == [(2, 16), (2, 16)]
    np.testing.assert_array_equal(measurements[1][0], trainings["say"][2])


def test_a_repeat_of_other_settings_is_refused_by_name(written, tmp_path):
    row, (path, *_) = written
    repeat = rows.read_row(path)
    recipe = {**repeat.settings["recipe"], "lr": 0.5}
    odd = replace(repeat, settings={**repeat.settings, "recipe": recipe})
    rows.write_row(tmp_path / "odd.parquet", odd)
    with pytest.raises(RowError, match=r"odd\.parquet.*other settings"):
        repeats.gather({"say": row}, [tmp_path / "odd.parquet"])


def test_all_files_that_cannot_be_gathered_are_named_at_once(written, tmp_path):
    row, (path, *_) = written
    repeat = rows.read_row(path)
    (tmp_path / "cut.parquet").write_bytes(path.read_bytes()[:500])
    rows.write_row(tmp_path / "z.parquet", replace(repeat, about=repeat.about | {"task": "sing"}))
    about = {key: value for key, value in repeat.about.items() if key != "seed"}
    rows.write_row(tmp_path / "plain.parquet", replace(repeat, about=about))
    names = ("cut", "gone", "z", "plain")
    with pytest.raises(RowError, match=r"4 problem\(s\).*nothing was gathered") as caught:
        repeats.gather({"say": row}, [path, *(tmp_path / f"{name}.parquet" for name in names)])
    for name in names:
        assert f"{name}.parquet: " in str(caught.value)
    with pytest.raises(RowError, match=r"1 problem\(s\)"):
        repeats.gather({"say": tmp_path / "gone.parquet"}, [path])
