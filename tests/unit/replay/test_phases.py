"""Replayed examples that are chosen while the training runs (`online`, `closed_loop`)."""

import json
from dataclasses import replace

import numpy as np
import pytest
from helpers import tiny

from lethe.config.model_settings import LoRA, Recipe, Scoring
from lethe.config.replay_settings import Replay
from lethe.data.examples import UpstreamExample, without_copies_of_heldout
from lethe.engine import models
from lethe.engine.checkpoints import Checkpoint
from lethe.engine.reader import Reader
from lethe.errors import LetheError
from lethe.matrix.forgetting_matrix import Matrix, write_matrix
from lethe.measure import forgetting as measurement
from lethe.measure.forgetting import Job, base_losses
from lethe.replay.phases import PhasedChoice, scale_of_forgetting
from lethe.replay.replay_inputs import ReplayInputs, read_training_rows
from lethe.replay.runs import fine_tune_with_replay, replay_line
from lethe.replay.strategies import Pool, choose_replayed

UPSTREAM = tiny.upstream(32)
REPLAYABLE = [example for example in UPSTREAM if example.split == "replayable"]
HELDOUT = {example.example_id for example in UPSTREAM if example.split == "heldout"}
TEXT = {"objective": "text", "dose": "mixed"}


def training_rows(scale=1.0):
    """Forgetting of all upstream examples by six other tasks."""
    rng = np.random.default_rng(0)
    rows = np.outer(rng.uniform(0.5, 2, 6), rng.uniform(0, 1, len(UPSTREAM)))
    rows += 0.05 * rng.normal(size=rows.shape)
    ids = [example.example_id for example in UPSTREAM]
    return dict(zip(ids, scale * rows.T, strict=True))


@pytest.fixture(scope="module")
def job(model_folders):
    card, scoring = model_folders["olmo"], Scoring(max_tokens=24, tokens_per_batch=4096)
    model, tokenizer = models.load(card)
    base = base_losses(Reader(model, tokenizer, scoring), UPSTREAM, {"model": card})
    recipe = Recipe(steps=10, batch=4, lr=1e-2, warmup_steps=1, max_tokens=32)
    return Job(card, base, tiny.pairs(20, seed=1), tiny.pairs(6, seed=2), recipe, scoring)


def settings(strategy, **changes):
    values = {"strategies": ["random", "online", "closed_loop"], "ratio": 0.25, "probes": 5}
    return Replay(**values | changes).resolve(strategy)


def run(job, strategy="online", seed=0, task="t", rows=None, upstream=UPSTREAM, **changes):
    return fine_tune_with_replay(
        job,
        upstream,
        settings(strategy, **changes),
        task=task,
        seed=seed,
        inputs=ReplayInputs(training_rows=training_rows() if rows is None else rows),
    )


def spy_on_measurements(monkeypatch):
    """The ids of the examples of each measurement in the middle of a training."""
    calls = []
    actual = Job._forgetting_now

    def spy(job, reader, upstream, title):
        calls.append([example.example_id for example in upstream])
        return actual(job, reader, upstream, title)

    monkeypatch.setattr(Job, "_forgetting_now", spy)
    return calls


def spy_on_steps(monkeypatch):
    """The replayed texts of each step, as token ids."""
    from lethe.engine.training_loop import TrainingLoop

    steps = []
    actual = TrainingLoop.take

    def spy(loop, step, number, title):
        texts = [tuple(e.ids) for e in step.new + step.replayed if e.start == 1]
        steps.append(texts)
        return actual(loop, step, number, title)

    monkeypatch.setattr(TrainingLoop, "take", spy)
    return steps


def test_online_replays_at_random_then_by_a_prediction_from_one_round_of_probes(job, monkeypatch):
    measured, steps = spy_on_measurements(monkeypatch), spy_on_steps(monkeypatch)
    row = run(job, online_after=0.5, **TEXT)
    online = [text for step in steps for text in step]
    phases = row.about["replay_phases"]
    # Ten steps of new examples and two and a half of replayed ones.
    assert [phase["step"] for phase in phases] == [0, 6]
    assert [phase["probes"] for phase in phases] == [[], measured[0]]
    assert len(measured) == 1 and len(measured[0]) == 5
    assert (row.about["replayed"], row.about["probe_passes"]) == (10, 5)
    assert replay_line(row)["probe_passes"] == 5
    steps.clear()
    random = run(job, "random", **TEXT)
    first = len(phases[0]["examples"])
    assert online[:first] == [text for step in steps for text in step][:first]
    assert 0 < first < 10
    assert "probe_passes" not in replay_line(random)


def test_closed_loop_probes_three_times_and_draws_the_rest_each_time(job, monkeypatch):
    measured = spy_on_measurements(monkeypatch)
    row = run(job, "closed_loop")
    phases = row.about["replay_phases"]
    assert [phase["step"] for phase in phases] == [0, 3, 6, 10]
    assert [phase["probes"] for phase in phases[1:]] == measured
    assert row.about["probe_passes"] == 15
    replayed = [name for phase in phases for name in phase["examples"]]
    assert len(replayed) == row.about["replayed"] == len(set(replayed)) == 10
    for number, phase in enumerate(phases[1:], 1):
        before = {name for earlier in phases[:number] for name in earlier["examples"]}
        assert not before & set(phase["probes"])
    once = run(job, "closed_loop", closed_loop_after=[0.4])
    assert len(once.about["replay_phases"]) == 2


def test_the_rest_is_what_the_prediction_puts_first(job):
    row = run(job, draw="top", prediction="column_mean", probes=1)
    first, last = row.about["replay_phases"]
    means = {name: column.mean() for name, column in training_rows().items()}
    rest = [e.example_id for e in REPLAYABLE if e.example_id not in first["examples"]]
    unprobed = [name for name in rest if name not in last["probes"]]
    expected = sorted(unprobed, key=means.__getitem__)[::-1]
    rest_of_draw = [name for name in last["examples"] if name not in last["probes"]]
    assert rest_of_draw == expected[: len(rest_of_draw)]


def test_the_tasks_own_row_never_enters(job, tmp_path):
    """Leave-one-task-out: whatever the row of the task holds, the run is the same to the byte."""
    columns = np.array(list(training_rows().values()), dtype=np.float32)
    names = [f"task{number}" for number in range(len(columns.T))]
    runs = []
    for value in (0.0, 50.0, np.nan):
        values = np.vstack([columns.T, np.full(len(columns), value, dtype=np.float32)])
        z = Matrix(values=values, tasks=[*names, "t"], example_ids=list(training_rows()))
        write_matrix(tmp_path / "Z.parquet", z)
        rows = read_training_rows(str(tmp_path / "Z.parquet"), names)
        runs.append(run(job, "closed_loop", rows=rows))
    for other in runs[1:]:
        assert other.loss_after.tobytes() == runs[0].loss_after.tobytes()
        assert other.about["replay_phases"] == runs[0].about["replay_phases"]


@pytest.mark.parametrize("strategy", ["online", "closed_loop"])
def test_held_out_examples_are_neither_probed_nor_replayed(job, strategy, monkeypatch):
    measured = spy_on_measurements(monkeypatch)
    # The held-out examples are those that every other task forgets most.
    rows = training_rows()
    for name in HELDOUT:
        rows[name] = rows[name] + 100
    copy = next(e for e in UPSTREAM if e.split == "heldout")
    twin = UpstreamExample("twin", copy.domain, "replayable", copy.example)
    base = job.base.select([e.example_id for e in UPSTREAM] + [copy.example_id])
    base = replace(base, example_ids=[*base.example_ids[:-1], "twin"])
    row = run(
        replace(job, base=base),
        strategy,
        rows=rows | {"twin": np.full(6, 100.0)},
        upstream=[*UPSTREAM, twin],
        probes=30,
        ratio=0.9,
    )
    replayed = {name for phase in row.about["replay_phases"] for name in phase["examples"]}
    probed = {name for names in measured for name in names}
    assert replayed and probed
    assert not (replayed | probed) & {*HELDOUT, "twin"}
    assert set(row.example_ids) == HELDOUT


def test_equal_seeds_give_equal_bytes_and_others_do_not(job):
    one, again, other = run(job), run(job), run(job, seed=1)
    assert one.loss_after.tobytes() == again.loss_after.tobytes()
    assert one.about["replay_phases"] == again.about["replay_phases"]
    assert one.about["replay_phases"] != other.about["replay_phases"]
    assert run(job, task="u").about["replay_phases"] != one.about["replay_phases"]


ADAPTERS = {"method": "lora", "lora": LoRA(rank=2, dropout=0.3)}
# How the examples enter the loss, and the recipe.
TRAININGS = {
    "mixed": (TEXT, {}),
    "mixed with prompt KL": (TEXT, {"ema": 0.5, "prompt_kl": 0.5}),
    "text": ({"objective": "text", "weight": 2.0}, {"micro_batch": 1}),
    "both per step": ({"objective": "both", "dose": "step"}, {"micro_batch": 2}),
    "stored": ({"teacher": "stored"}, {"micro_batch": 1}),
    "stored per step": ({"dose": "step", "teacher": "stored", "top_k": 8}, {}),
    "swap": ({"objective": "both", "accounting": "swap"}, {}),
    "adapters": ({}, ADAPTERS),
    "adapters, stored per step": ({"dose": "step", "teacher": "stored"}, ADAPTERS),
}


def leave_after(steps):
    """In place of `leave_if_asked`: leaves the training after so many steps."""
    calls = []

    def leave(_checkpoint, _progress):
        calls.append(1)
        if len(calls) == steps:
            raise KeyboardInterrupt

    return leave


def interrupted(job, monkeypatch, steps, **arguments):
    """The run after it was stopped behind `steps` steps; and how often it was probed again."""
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "due", lambda checkpoint: checkpoint.folder is not None)
        patch.setattr(Checkpoint, "leave_if_asked", leave_after(steps))
        with pytest.raises(KeyboardInterrupt):
            run(job, **arguments)
    with monkeypatch.context() as patch:
        measured = spy_on_measurements(patch)
        row = run(job, **arguments)
    job.finish()
    return row, len(measured)


@pytest.mark.parametrize("training", TRAININGS)
def test_killed_in_a_phase_it_ends_with_the_bytes_of_an_uninterrupted_run(
    job, tmp_path, monkeypatch, training
):
    changes, recipe = TRAININGS[training]
    job = replace(job, recipe=job.recipe.model_copy(update=recipe))
    uninterrupted = run(job, "closed_loop", **changes)
    # Phases begin at 3, 6 and 10, or at 2, 5 and 8 where replay adds no steps.
    resumable = replace(job, unfinished=tmp_path / "c")
    row, again = interrupted(resumable, monkeypatch, 7, strategy="closed_loop", **changes)
    assert row.loss_after.tobytes() == uninterrupted.loss_after.tobytes()
    assert row.about["replay_phases"] == uninterrupted.about["replay_phases"]
    assert again == 1, "only the phase that had not begun"


@pytest.mark.parametrize("steps", [1, 4, 5, 6, 11])
def test_killed_before_between_and_after_its_phases_online_ends_with_the_same_bytes(
    job, tmp_path, monkeypatch, steps
):
    changes = {"teacher": "stored", "online_after": 0.4}
    uninterrupted = run(job, **changes)
    begins = uninterrupted.about["replay_phases"][1]["step"]
    assert begins == 5
    resumable = replace(job, unfinished=tmp_path / "c")
    row, again = interrupted(resumable, monkeypatch, steps, **changes)
    assert row.loss_after.tobytes() == uninterrupted.loss_after.tobytes()
    assert row.about["replay_phases"] == uninterrupted.about["replay_phases"]
    assert again == (1 if steps <= begins else 0)


def test_killed_after_the_training_it_still_reports_its_phases(job, tmp_path, monkeypatch):
    resumable = replace(job, unfinished=tmp_path / "c")
    uninterrupted = run(resumable)
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "due", lambda checkpoint: checkpoint.folder is not None)
        patch.setattr(measurement, "score_own_task", stop_after_training)
        with pytest.raises(KeyboardInterrupt):
            run(resumable)
    row = run(resumable)
    resumable.finish()
    assert row.about["replay_phases"] == uninterrupted.about["replay_phases"]


def stop_after_training(*_arguments, when, **_options):
    if when == "after":
        raise KeyboardInterrupt
    return {}


def test_another_row_of_another_task_is_another_run(job, tmp_path):
    """A checkpoint of a run whose training rows have changed since must not be used."""
    chooser = PhasedChoice.of(pool_of(job), settings("online"), count=4, seed=[0, 1])
    changed = PhasedChoice.of(pool_of(job, scale=2), settings("online"), count=4, seed=[0, 1])
    assert json.dumps(chooser.settings()) != json.dumps(changed.settings())
    probes = PhasedChoice.of(pool_of(job), settings("online", probes=6), count=4, seed=[0, 1])
    assert json.dumps(chooser.settings()) != json.dumps(probes.settings())


def pool_of(job, scale=1.0):
    losses = zip(job.base.example_ids, job.base.loss_before.tolist(), strict=True)
    return Pool.of(UPSTREAM, base_losses=dict(losses), training_rows=training_rows(scale))


def test_the_half_trained_model_is_brought_to_the_size_of_complete_rows(job):
    chooser = PhasedChoice.of(
        pool_of(job), settings("online", prediction="additive"), count=8, seed=[0, 1]
    )
    rows = np.array([training_rows()[e.example_id] for e in REPLAYABLE]).T
    draws = []
    for size in (0.01, 1.0, 10.0):
        forgetting = size * rows[2]
        draw = chooser.choose_rest(1, 8, [0, 1], forgetting.__getitem__)
        draws.append(draw)
        assert not {0, 1} & set(draw.examples)
    assert draws[0].examples == draws[1].examples == draws[2].examples
    assert draws[0].facts["scale"] == pytest.approx(100 * draws[1].facts["scale"])


def test_the_scale_is_the_training_rows_median_size_over_the_measured_size():
    rows = np.array([[3.0, 3.0], [1.0, -1.0], [2.0, np.nan], [np.nan, np.nan]])
    assert scale_of_forgetting(rows, np.array([0.5, -0.5])) == pytest.approx(4.0)
    assert scale_of_forgetting(rows, np.zeros(2)) == 1
    assert scale_of_forgetting(np.full((2, 2), np.nan), np.ones(2)) == 1


def test_examples_that_no_task_measured_are_never_probed_and_never_drawn_by_prediction(job):
    pool = pool_of(job)
    rows = pool.training_rows.copy()
    rows[:, :5] = np.nan
    losses = pool.base_losses.copy()
    losses[5] = np.nan
    chooser = PhasedChoice.of(
        replace(pool, training_rows=rows, base_losses=losses),
        settings("online", probes=100),
        count=6,
        seed=[0, 1],
    )
    names = [example.example_id for example in chooser.pool.examples]
    assert REPLAYABLE[5].example_id not in names
    unknown = {REPLAYABLE[number].example_id for number in range(5)}
    draw = chooser.choose_rest(1, 12, [], lambda probes: np.ones(len(probes)))
    assert not unknown & {names[number] for number in draw.examples}
    assert len(draw.facts["probes"]) == len(names) - 5
    assert not unknown & set(draw.facts["probes"])


def test_a_model_whose_probes_are_all_lost_is_an_error(job):
    chooser = PhasedChoice.of(pool_of(job), settings("online"), count=6, seed=[0, 1])
    with pytest.raises(LetheError, match="none of 5 probes has a finite loss.*lower recipe.lr"):
        chooser.choose_rest(1, 6, [], lambda probes: np.full(len(probes), np.nan))


def test_without_rows_of_other_tasks_it_says_what_it_needs(job):
    with pytest.raises(LetheError, match="'online' needs training_rows"):
        fine_tune_with_replay(job, UPSTREAM, settings("online"), task="t", seed=0)
    with pytest.raises(LetheError, match="chooses while the training runs"):
        choose_replayed(pool_of(job), settings("closed_loop"), 4, [0])


def test_a_training_too_short_for_a_second_phase_is_random_replay(job):
    short = replace(job, recipe=job.recipe.model_copy(update={"steps": 1}))
    row = run(short, accounting="swap", ratio=0.25, **TEXT)
    assert len(row.about["replay_phases"]) == 1 and row.about["probe_passes"] == 0
    random = run(short, "random", accounting="swap", ratio=0.25, **TEXT)
    assert row.loss_after.tobytes() == random.loss_after.tobytes()


def test_more_draws_than_examples_start_over(job):
    row = run(job, "closed_loop", ratio=0.9)
    replayed = [name for phase in row.about["replay_phases"] for name in phase["examples"]]
    assert len(replayed) == 36 > len(REPLAYABLE)


def test_copies_of_held_out_examples_leave_the_pool():
    copy = next(e for e in UPSTREAM if e.split == "heldout")
    twin = UpstreamExample("twin", copy.domain, "replayable", copy.example)
    assert without_copies_of_heldout([*UPSTREAM, twin]) == list(UPSTREAM)
