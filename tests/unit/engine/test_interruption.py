"""A job that is killed anywhere, again and again, ends with the bytes of one that never was."""

import json
import os
import resource
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import forked, kills, tiny

from lethe.config.model_settings import LoRA, Recipe, Scoring
from lethe.engine import distributed
from lethe.engine.checkpoints import STOPPED, Checkpoint, fingerprint
from lethe.engine.reader import Reader
from lethe.matrix import rows
from lethe.measure.forgetting import base_losses

UPSTREAM = tiny.upstream(48)
SCORING = Scoring(max_tokens=24, tokens_per_batch=60)


@pytest.fixture
def drive(model_folders, tmp_path):
    """Measures a row in a folder of its own while kills go on; the row and the statuses."""

    def run(
        name: str, number: int | None, minutes: str, replay: dict | None = None, **changes
    ) -> tuple[rows.Row, list[int]]:
        folder = tmp_path / name
        folder.mkdir()
        card = model_folders["llama"]
        shared = {"model": card, "scoring": SCORING.model_dump()}
        base = base_losses(Reader.load(card, SCORING), UPSTREAM, shared)
        rows.write_row(folder / "base.parquet", base)
        sizes = {"steps": 40, "batch": 4, "lr": 1e-2, "warmup_steps": 1, "max_tokens": 32}
        recipe = Recipe(**sizes | changes)
        told = {"card": card, "recipe": recipe.model_dump(), "scoring": SCORING.model_dump()}
        told |= {"signal": number, "kills": 12, "seed": name, "replay": replay}
        output, _ = forked.call(
            kills.measure_and_kill,
            *(folder, told),
            folder=folder,
            environment={"LETHE_CHECKPOINT_MINUTES": minutes},
        )
        assert not (folder / "unfinished").exists()
        return rows.read_row(folder / "row.parquet"), json.loads(output)

    return run


@pytest.mark.parametrize("changes", [{}, {"method": "lora", "lora": LoRA(rank=2, dropout=0.3)}])
def test_killed_at_random_moments_it_ends_with_the_same_bytes(drive, changes):
    whole, [status] = drive("whole", None, "10", **changes)
    assert status == 0
    for name, number in (("terminated", 15), ("killed", 9))[bool(changes) :]:
        row, statuses = drive(name, number, "0", **changes)
        assert sum(status != 0 for status in statuses) > 1
        assert set(statuses) <= {STOPPED, -9, -15, 0}
        for ours, wanted in zip(
            (row.loss_before, row.loss_after), (whole.loss_before, whole.loss_after), strict=True
        ):
            assert ours.tobytes() == wanted.tobytes()
        for key in ("eval_loss_after", "training_loss_first", "training_loss_last", "steps"):
            assert row.about[key] == whole.about[key]


@pytest.mark.parametrize(
    "changes",
    [
        {"replay": {"objective": "kl", "weight": 4.0, "dose": "step"}, "prompt_kl": 0.5},
        {
            "replay": {"objective": "both", "weight": 4.0, "dose": "token"},
            **{"method": "lora", "lora": LoRA(rank=2, dropout=0.3)},
        },
    ],
    ids=["copy", "adapters"],
)
def test_killed_with_a_teacher_it_finds_the_same_one_again(drive, changes):
    """The teacher is the base model as it is loaded, never the weights of the checkpoint."""
    whole, _ = drive("whole", None, "10", **changes)
    row, statuses = drive("killed", 9, "0", **changes)
    assert sum(status != 0 for status in statuses) > 1
    assert row.loss_after.tobytes() == whole.loss_after.tobytes()
    for key in ("eval_loss_after", "training_loss_first", "training_loss_last", "steps"):
        assert row.about[key] == whole.about[key]


@pytest.mark.parametrize("step", [1, 5])
def test_stopped_after_steps_without_a_gradient_it_ends_with_the_same_bytes(
    tmp_path, monkeypatch, step
):
    """AdamW makes no update in them, so it has made fewer updates than the loop has made steps."""
    recipe = Recipe(steps=8, batch=1, lr=1e-2, warmup_steps=1, max_epochs=None)
    replay = {"objective": "text", "weight": 0.0, "dose": "token"}
    check_that_it_continues(recipe, replay, step, tmp_path, monkeypatch)


@pytest.mark.parametrize("teacher", ["live", "stored"])
@pytest.mark.parametrize("step", [1, 4])
def test_stopped_after_any_step_a_teacher_is_still_the_base_model(
    tmp_path, monkeypatch, teacher, step
):
    recipe = Recipe(steps=6, batch=4, lr=1e-2, warmup_steps=1, prompt_kl=0.5)
    replay = {"objective": "kl", "weight": 4.0, "dose": "step", "teacher": teacher}
    check_that_it_continues(recipe, replay, step, tmp_path, monkeypatch)


def check_that_it_continues(recipe, replay, step, folder, monkeypatch):
    """Stops a training after a step, continues it, and compares the weights with a whole one's."""
    from lethe.engine.objectives import ReplayTerm
    from lethe.engine.training import fine_tune

    term = ReplayTerm(tiny.tokens(*[(12, 1)] * 6), **replay)

    def trained(checkpoint):
        model = tiny.model("olmo")
        fine_tune(model, tiny.tokens(*[(12, 4)] * 24), recipe, "t", checkpoint, replay=term)
        return model.state_dict()

    expected = trained(Checkpoint())
    monkeypatch.setattr(Checkpoint, "due", lambda checkpoint: True)
    monkeypatch.setattr(Checkpoint, "leave_if_asked", leave_after(step))
    with pytest.raises(KeyboardInterrupt):
        trained(Checkpoint(folder / "c"))
    monkeypatch.undo()
    for name, weight in trained(Checkpoint(folder / "c")).items():
        assert weight.equal(expected[name]), name


def leave_after(steps: int):
    """In place of `leave_if_asked`: leaves the training after so many steps."""
    calls = []

    def leave(_checkpoint, _progress):
        calls.append(1)
        if len(calls) == steps:
            raise KeyboardInterrupt

    return leave


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_it_leaves_what_it_has_though_nothing_was_due(drive, number):
    """SIGTERM comes once, when a cluster wants its machine back; the interval is far from over.

    Ctrl-C is as good a request.
    """
    whole, _ = drive("whole", None, "10")
    row, statuses = drive("terminated", number, "1000")
    assert STOPPED in statuses
    assert set(statuses) <= {STOPPED, -number, 0}
    assert row.loss_after.tobytes() == whole.loss_after.tobytes()


@pytest.mark.parametrize("moment", ["own task", "answers", "own answers"])
def test_asked_to_stop_at_the_very_end_it_keeps_what_was_measured(
    model_folders, tmp_path, monkeypatch, moment
):
    """Nothing was due yet, and the upstream examples are measured: they are not measured again."""
    import os as system

    from lethe.config.model_settings import ExactMatch
    from lethe.data.examples import Example, UpstreamExample
    from lethe.engine import reader as readers
    from lethe.measure import exact_match, forgetting

    scoring = SCORING.model_copy(update={"exact_match": ExactMatch(max_new_tokens=3)})
    card, settings = model_folders["llama"], {"model": model_folders["llama"]}
    reader, texts = Reader.load(card, scoring), tiny.sentences(12)
    questions = [Example(text, "?") for text in texts]
    asked = exact_match.Questions.of(reader.tokenizer, questions, scoring)
    answers = [answer or "" for answer in asked.ask(reader)]
    upstream = [
        UpstreamExample(f"a-{i}", "a", "replayable", Example(text, answer))
        for i, (text, answer) in enumerate(zip(texts, answers, strict=True))
    ]
    base = base_losses(reader, upstream, settings)
    examples = tiny.pairs(20, seed=1), tiny.pairs(6, seed=2)
    recipe = Recipe(steps=3, batch=4, lr=1e-2, warmup_steps=1, max_tokens=32)
    job = forgetting.Job(card, base, *examples, recipe, scoring, unfinished=tmp_path / "c")
    *_, wanted = job.run(upstream)
    job.finish()
    count, scored = [], readers.score
    inside = scored if moment == "own task" else readers.generate
    last = 2 if moment == "answers" else 3  # of the calls: before, upstream, after

    def signalled(*arguments, **options):
        count.append(1)
        if len(count) == last:
            system.kill(system.getpid(), 15)
        return inside(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(readers, "score" if moment == "own task" else "generate", signalled)
        with pytest.raises(SystemExit) as left:
            job.run(upstream)
    assert left.value.code == STOPPED

    def known(model, examples, budget, title, **options):
        if "upstream" in title:
            assert options["partial"] is not None, "measured again"
            np.testing.assert_array_equal(options["partial"], wanted.loss_after)
        return scored(model, examples, budget, title, **options)

    monkeypatch.setattr(forgetting, "fine_tune", None)
    monkeypatch.setattr(readers, "score", known)
    *_, row = job.run(upstream)
    assert row.loss_after.tobytes() == wanted.loss_after.tobytes()
    assert row.answers.text == wanted.answers.text
    for key in ("eval_loss_after", "eval_exact_match_after"):
        assert row.about[key] == wanted.about[key]


def test_base_losses_stay_when_it_is_asked_to_stop_among_the_answers(
    model_folders, tmp_path, monkeypatch
):
    import os as system

    from lethe.config.model_settings import ExactMatch
    from lethe.data.examples import Example, UpstreamExample
    from lethe.engine import reader as readers

    scoring = SCORING.model_copy(update={"exact_match": ExactMatch(max_new_tokens=3)})
    reader = Reader.load(model_folders["llama"], scoring)
    upstream = [
        UpstreamExample(f"a-{i}", "a", "replayable", Example(text, "?"))
        for i, text in enumerate(tiny.sentences(12))
    ]
    settings = (upstream, {"model": 1}, tmp_path / "c")
    inside, scored, kept = readers.generate, readers.score, []

    def signalled(*arguments, **options):
        system.kill(system.getpid(), 15)
        return inside(*arguments, **options)

    def known(model, examples, budget, title, **options):
        kept.append(options["partial"])
        return scored(model, examples, budget, title, **options)

    with monkeypatch.context() as patched:
        patched.setattr(readers, "generate", signalled)
        with pytest.raises(SystemExit):
            base_losses(reader, *settings)
    monkeypatch.setattr(readers, "score", known)
    found = base_losses(reader, *settings)
    np.testing.assert_array_equal(kept, [found.loss_before])
    assert np.isfinite(found.loss_before).any()


def test_base_losses_of_another_device_or_other_batches_are_not_gone_on_from(
    model_folders, tmp_path, monkeypatch
):
    from lethe.measure import forgetting

    reader = Reader.load(model_folders["llama"], SCORING)
    seen = []

    def noting(folder, made_from):
        seen.append(made_from)
        return Checkpoint(folder, made_from)

    def elsewhere(self):
        yield torch.nn.Parameter(torch.zeros(1, device="meta"))

    monkeypatch.setattr(forgetting, "Checkpoint", noting)
    for halvings in (0, 0, 1):
        base_losses(reader, UPSTREAM[:4], {"model": 1}, halvings=halvings)
    monkeypatch.setattr(forgetting.UpstreamSet, "losses", None)
    monkeypatch.setattr(type(reader.model), "parameters", elsewhere)
    with pytest.raises(TypeError):
        base_losses(reader, UPSTREAM[:4], {"model": 1})
    assert seen[0] == seen[1]
    assert len(set(seen)) == 3


def test_a_checkpoint_of_another_job_is_not_used(tmp_path):
    import torch

    first = Checkpoint(tmp_path / "c", fingerprint({"lr": 1}))
    first.save("training", {"w": torch.ones(2)}, {"losses": [1.0]})
    assert first.load("training")[1] == {"losses": [1.0]}
    other = Checkpoint(tmp_path / "c", fingerprint({"lr": 2}))
    assert other.load("training") is None
    assert first.load("scores") is None
    (tmp_path / "c/training.safetensors").write_bytes(b"cut off")
    assert first.load("training") is None


def test_a_checkpoint_of_another_form_is_not_gone_on_from(tmp_path):
    """As of a version that kept its random state under another name."""
    import torch
    from helpers import tiny

    from lethe.config.model_settings import Recipe
    from lethe.engine.training import fine_tune

    recipe = Recipe(steps=3, batch=4, lr=1e-2, warmup_steps=1)

    def trained(unfinished):
        model = tiny.model("llama")
        fine_tune(model, tiny.tokens(*[(12, 4)] * 12), recipe, "t", unfinished)
        return model.state_dict()

    older = Checkpoint(tmp_path / "c")
    weights = {f"weight/{name}": w for name, w in tiny.model("llama").named_parameters()}
    older.save("training", weights | {"random": torch.get_rng_state()}, {"losses": [9.0]})
    wanted = trained(None)
    for name, weight in trained(Checkpoint(tmp_path / "c")).items():
        assert torch.equal(weight, wanted[name])


def test_base_losses_go_on_from_what_was_scored(model_folders, tmp_path, monkeypatch):
    from lethe.engine import batches, scoring

    card = model_folders["llama"]
    reader = Reader.load(card, SCORING)
    settings = ({"model": card}, tmp_path / "unfinished")
    monkeypatch.setenv("LETHE_CHECKPOINT_MINUTES", "0")
    calls, wanted = [], base_losses(reader, UPSTREAM, {"model": card})

    def dying(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return batches.scored_losses(*arguments)

    monkeypatch.setattr(scoring, "scored_losses", dying)
    with pytest.raises(KeyboardInterrupt):
        base_losses(reader, UPSTREAM, *settings)
    found = base_losses(reader, UPSTREAM, *settings)
    np.testing.assert_array_equal(found.loss_before, wanted.loss_before)
    whole = len(calls) - 1
    calls.clear()
    calls += [1] * 4
    base_losses(reader, UPSTREAM, {"model": card})
    assert whole == len(calls) - 4, "batches that were scored were scored again"


@pytest.mark.parametrize("when", ["while the processes agree", "while it saves"])
def test_asked_to_stop_at_a_bad_moment_it_leaves_at_the_next(tmp_path, monkeypatch, when):
    """Several processes leave together or not at all, so that none waits for one that is gone."""

    def asked():
        os.kill(os.getpid(), signal.SIGTERM)

    with Checkpoint(tmp_path) as checkpoint:
        checkpoint.seconds = 0
        agree = distributed.all_max
        if when == "while the processes agree":
            monkeypatch.setattr(distributed, "all_max", lambda wish: asked() or agree(wish))
        assert checkpoint.due()
        monkeypatch.undo()
        if when == "while it saves":
            asked()
        checkpoint.save("part", {"a": torch.zeros(1)}, {})
        checkpoint.leave_if_asked("one")
        assert checkpoint.due()
        with pytest.raises(SystemExit) as left:
            checkpoint.leave_if_asked("two")
    assert left.value.code == STOPPED


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit"])
def test_a_training_that_is_not_saved_does_not_say_that_it_continues(
    tmp_path, monkeypatch, caplog, optimizer
):
    """bitsandbytes needs a GPU: plain AdamW bears its name here."""
    from lethe.engine import training

    def named(parameters, recipe):
        return torch.optim.AdamW(parameters, lr=recipe.lr), optimizer

    monkeypatch.setattr(training, "make_optimizer", named)
    recipe = Recipe(steps=3, batch=4, lr=1e-2, warmup_steps=1)
    with Checkpoint(tmp_path / "c") as checkpoint:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(SystemExit) as left:
            training.fine_tune(
                tiny.model("llama"), tiny.tokens(*[(12, 4)] * 12), recipe, "t", checkpoint
            )
    assert left.value.code == STOPPED
    saved = optimizer == "adamw"
    assert ("t, step 1 of 3; the next start continues from there" in caplog.text) == saved
    assert ("the next start uses earlier checkpoints, if any" in caplog.text) != saved
    assert (tmp_path / "c").exists() == saved


def test_a_state_that_cannot_be_saved_is_not_due_again_at_once(tmp_path):
    checkpoint = Checkpoint(tmp_path)
    checkpoint._last -= checkpoint.seconds
    assert checkpoint.due()
    checkpoint.skip()
    assert not checkpoint.due()


def train_on_a_full_disk(folder: Path) -> None:
    """Fine-tunes where no file can be larger than 1,500 bytes; prints what was saved."""
    from lethe.engine.training import fine_tune

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    sys.dont_write_bytecode = True  # A module that is cut off at the limit would stay broken.
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))
    recipe = Recipe(steps=3, batch=4, lr=1e-2, warmup_steps=1)
    with Checkpoint(folder) as unfinished:
        fine_tune(tiny.model("llama"), tiny.tokens(*[(12, 4)] * 12), recipe, "t", unfinished)
        print(unfinished.load("training"), sorted(folder.iterdir()), flush=True)


def test_a_disk_that_is_full_costs_the_checkpoint_and_not_the_job(tmp_path):
    output, messages = forked.call(
        *(train_on_a_full_disk, tmp_path / "unfinished"),
        folder=tmp_path,
        environment={"LETHE_CHECKPOINT_MINUTES": "0"},
    )
    assert output.strip() == "None []"
    assert messages.count("training.safetensors: could not be saved (") == 2
    assert messages.count("; the job continues, but a restart repeats this part") == 2
    assert "File too large" in messages
