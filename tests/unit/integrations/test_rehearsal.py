"""Replay inside transformers' Trainer and trl's SFTTrainer."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
import transformers
from helpers import tiny
from helpers.trainers import (
    BATCH,
    TASK,
    KeepGradients,
    assert_same,
    batches_of,
    expected_gradients,
    make_model,
    make_trainer,
    move,
    padded,
)

from lethe.config.model_settings import LoRA, Recipe
from lethe.data.examples import Example, UpstreamExample, read_upstream, write_upstream
from lethe.engine import models
from lethe.engine.batches import collate, token_losses
from lethe.engine.objectives import ReplayTerm, Step
from lethe.errors import LetheError
from lethe.integrations import Rehearsal

ROOT = Path(__file__).parents[3]
WAYS = [
    pytest.param({"objective": "kl"}, id="kl"),
    pytest.param({"objective": "text", "weight": 0.5}, id="text"),
    pytest.param({"prompt_kl": 1.5}, id="kl-and-prompts"),
    pytest.param({"prompt_kl": 1.5, "replay": None}, id="prompts"),
    pytest.param({"dose": "token"}, id="kl-by-token"),
    pytest.param({"dose": "token", "objective": "text", "prompt_kl": 1.5}, id="text-by-token"),
]


@pytest.mark.parametrize("options", WAYS)
@pytest.mark.parametrize("lora", [None, LoRA(rank=2, dropout=0.0)], ids=["full", "lora"])
@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_step_has_the_gradients_of_the_workflows_own_objective(
    replay, tokenizer, tmp_path, options, lora, accumulated
):
    options = {"replay": replay, "weight": 4.0, "examples_per_step": 3} | options
    model = make_model(lora)
    base = copy.deepcopy(model)
    changes = {"gradient_accumulation_steps": accumulated, "max_steps": 1}
    trainer = make_trainer(model, tmp_path / "t", tokenizer, **changes)
    keeper = KeepGradients()
    trainer.add_callback(keeper)
    rehearsal = Rehearsal.attach(trainer, options.pop("replay"), **options)
    move(model)
    moved = copy.deepcopy(model)
    (new,) = batches_of(make_trainer(base, tmp_path / "b", tokenizer, **changes), 1)
    replayed = [] if rehearsal.replay is None else rehearsal.replay.of_step(0)
    term = ReplayTerm(
        replayed,
        objective=options.get("objective", "kl"),
        weight=options["weight"],
        dose=options.get("dose", "step"),
    )
    recipe = Recipe(batch=BATCH * accumulated, prompt_kl=options.get("prompt_kl"))
    teacher = base if lora is None else moved
    expected = expected_gradients(moved, teacher, Step(new, replayed), recipe, term)
    trainer.train()
    assert_same(keeper.steps[0], expected)


@pytest.mark.parametrize("architecture", ["gpt_neox", "mpt", "olmo2"])
def test_other_architectures_have_the_same_gradients(replay, tokenizer, tmp_path, architecture):
    model = make_model(architecture=architecture)
    base = copy.deepcopy(model)
    trainer = make_trainer(model, tmp_path / "t", tokenizer, max_steps=1)
    keeper = KeepGradients()
    trainer.add_callback(keeper)
    rehearsal = Rehearsal.attach(trainer, replay, prompt_kl=1.0)
    move(model)
    moved = copy.deepcopy(model)
    (new,) = batches_of(make_trainer(base, tmp_path / "b", tokenizer), 1)
    replayed = rehearsal.replay.of_step(0)
    term = ReplayTerm(replayed, objective="kl", weight=4.0, dose="step")
    step = Step(new, replayed)
    expected = expected_gradients(moved, base, step, Recipe(batch=BATCH, prompt_kl=1.0), term)
    trainer.train()
    assert_same(keeper.steps[0], expected)


def test_bfloat16_has_the_gradients_of_the_workflows_bfloat16(replay, tokenizer, tmp_path):
    model = make_model()
    base = copy.deepcopy(model)
    trainer = make_trainer(model, tmp_path / "t", tokenizer, max_steps=1, bf16=True)
    keeper = KeepGradients()
    trainer.add_callback(keeper)
    rehearsal = Rehearsal.attach(trainer, replay, prompt_kl=1.0)
    move(model)
    moved = copy.deepcopy(model)
    (new,) = batches_of(make_trainer(base, tmp_path / "b", tokenizer), 1)
    replayed = rehearsal.replay.of_step(0)
    term = ReplayTerm(replayed, objective="kl", weight=4.0, dose="step")
    recipe = Recipe(batch=BATCH, prompt_kl=1.0, dtype="bfloat16")
    expected = expected_gradients(moved, base, Step(new, replayed), recipe, term)
    trainer.train()
    # Two ways of adding up in bfloat16, which has eight bits.
    assert_same(keeper.steps[0], expected, tolerance=0.03)


@pytest.mark.parametrize("lora", [None, LoRA(rank=2, dropout=0.0)], ids=["full", "lora"])
def test_gradient_checkpointing_changes_nothing(replay, tokenizer, tmp_path, lora):
    trained = []
    for checkpointing in (False, True):
        model = make_model(lora)
        folder = tmp_path / str(checkpointing)
        trainer = make_trainer(model, folder, tokenizer, gradient_checkpointing=checkpointing)
        Rehearsal.attach(trainer, replay, prompt_kl=1.0)
        trainer.train()
        trained.append(model)
    for value, expected in zip(*(model.parameters() for model in trained), strict=True):
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-6)


OPTIONS = {"prompt_kl": 1.0, "prompt_kl_positions": 2}
SAVING = {"save_strategy": "steps", "save_steps": 2}


def checkpoint_of_a_rehearsal(replay, tokenizer, folder, **options):
    """The checkpoint of the second of four steps."""
    trainer = make_trainer(make_model(), folder, tokenizer, **SAVING)
    Rehearsal.attach(trainer, replay, **options)
    trainer.train()
    return folder / "checkpoint-2"


@pytest.mark.parametrize(
    ("lora", "dose"),
    [(None, "step"), (LoRA(rank=2, dropout=0.5), "step"), (None, "token")],
    ids=["full", "lora", "by-token"],
)
def test_a_training_that_resumes_ends_with_the_same_bytes(replay, tokenizer, tmp_path, lora, dose):
    saving = SAVING | {"max_steps": 6}
    first = make_trainer(make_model(lora), tmp_path / "t", tokenizer, **saving)
    Rehearsal.attach(first, replay, dose=dose, **OPTIONS)
    first.train()
    resumed = make_trainer(make_model(lora), tmp_path / "t", tokenizer, **saving)
    Rehearsal.attach(resumed, replay, dose=dose, **OPTIONS)
    resumed.train(resume_from_checkpoint=str(tmp_path / "t/checkpoint-2"))
    for value, expected in zip(resumed.model.parameters(), first.model.parameters(), strict=True):
        assert torch.equal(value, expected)
    lines = [line for line in resumed.state.log_history if "replay/kl" in line]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]


def test_a_checkpoint_of_another_rehearsal_is_refused(replay, tokenizer, tmp_path):
    checkpoint = checkpoint_of_a_rehearsal(replay, tokenizer, tmp_path / "t")
    saved = json.loads((checkpoint / "rehearsal.json").read_text())
    assert saved["weight"] == 4.0

    again = make_trainer(make_model(), tmp_path / "t", tokenizer, **SAVING)
    Rehearsal.attach(again, replay, weight=2.0)
    with pytest.raises(LetheError, match=r"has weight 4.0, but this rehearsal has 2.0"):
        again.train(resume_from_checkpoint=str(checkpoint))

    tuned = transformers.AutoModelForCausalLM.from_pretrained(checkpoint)
    again = make_trainer(tuned, tmp_path / "t", tokenizer, **SAVING)
    Rehearsal.attach(again, replay)
    with pytest.raises(LetheError, match="attach to the untouched base model"):
        again.train(resume_from_checkpoint=str(checkpoint))


def test_a_checkpoint_is_compared_wherever_it_is(replay, tokenizer, tmp_path):
    checkpoint = checkpoint_of_a_rehearsal(replay, tokenizer, tmp_path / "first")

    again = make_trainer(make_model(), tmp_path / "second", tokenizer)
    Rehearsal.attach(again, replay, weight=7.0)
    with pytest.raises(LetheError, match=r"checkpoint-2.* has weight 4.0, but .* has 7.0"):
        again.train(resume_from_checkpoint=str(checkpoint))
    with pytest.raises(LetheError, match=r"checkpoint-2.* has weight 4.0, but .* has 7.0"):
        again.train(checkpoint)

    other = make_model()
    move(other)
    again = make_trainer(other, tmp_path / "second", tokenizer)
    Rehearsal.attach(again, replay)
    with pytest.raises(LetheError, match="attach to the untouched base model"):
        again.train(resume_from_checkpoint=str(checkpoint))

    again = make_trainer(make_model(), tmp_path / "first", tokenizer)
    Rehearsal.attach(again, replay, weight=7.0)
    with pytest.raises(LetheError, match=r"checkpoint-4.* has weight 4.0, but .* has 7.0"):
        again.train(resume_from_checkpoint=True)


def test_a_checkpoint_that_was_saved_without_a_rehearsal_is_accepted_with_a_warning(
    replay, tokenizer, tmp_path, caplog
):
    make_trainer(make_model(), tmp_path / "t", tokenizer, **SAVING).train()
    again = make_trainer(make_model(), tmp_path / "t", tokenizer)
    Rehearsal.attach(again, replay)
    again.train(resume_from_checkpoint=str(tmp_path / "t/checkpoint-2"))
    assert again.state.global_step == 4
    assert "checkpoint-2 has no rehearsal.json" in caplog.text
    caplog.clear()
    again.train()
    assert "rehearsal.json" not in caplog.text


def test_a_checkpoint_of_replay_examples_that_were_cut_elsewhere_is_refused(
    replay, tokenizer, tmp_path
):
    checkpoint = checkpoint_of_a_rehearsal(replay, tokenizer, tmp_path / "t", max_tokens=16)
    again = make_trainer(make_model(), tmp_path / "t", tokenizer)
    Rehearsal.attach(again, replay, max_tokens=20)
    with pytest.raises(LetheError, match="has max_tokens 16, but this rehearsal has 20"):
        again.train(resume_from_checkpoint=str(checkpoint))

    # Earlier versions did not write these keys.
    settings = json.loads((checkpoint / "rehearsal.json").read_text())
    del settings["max_tokens"], settings["dose"]
    (checkpoint / "rehearsal.json").write_text(json.dumps(settings))
    again.train(resume_from_checkpoint=str(checkpoint))
    assert again.state.global_step == 4


def test_the_same_seed_gives_the_same_bytes_and_another_other_ones(replay, tokenizer, tmp_path):
    trained = []
    for number, seed in enumerate((0, 0, 1)):
        model = make_model()
        trainer = make_trainer(model, tmp_path / str(number), tokenizer)
        Rehearsal.attach(trainer, replay, seed=seed, **OPTIONS)
        trainer.train()
        trained.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(trained[0], trained[1])
    assert not torch.equal(trained[0], trained[2])


def test_it_logs_the_terms_beside_the_loss_of_the_new_examples(replay, tokenizer, tmp_path):
    base = make_model()
    trainer = make_trainer(make_model(), tmp_path / "t", tokenizer, logging_steps=2)
    rehearsal = Rehearsal.attach(trainer, replay, prompt_kl=1.0)
    trainer.train()
    plain = make_trainer(base, tmp_path / "p", tokenizer, max_steps=1)
    plain.train()
    lines = [line for line in trainer.state.log_history if "loss" in line]
    assert [line["step"] for line in lines] == [2, 4]
    for line in lines:
        assert line["replay/loss"] == pytest.approx(4 * line["replay/kl"])
        assert line["replay/kl"] > 0 and line["replay/prompt_kl"] > 0
    assert [line["step"] for line in rehearsal.history] == [2, 4]
    # The first step starts from the base: no divergence, and the loss of a training without it.
    single = make_trainer(make_model(), tmp_path / "s", tokenizer, max_steps=1)
    Rehearsal.attach(single, replay, prompt_kl=1.0)
    single.train()
    (line,) = [line for line in single.state.log_history if "loss" in line]
    (expected,) = [line for line in plain.state.log_history if "loss" in line]
    assert line["loss"] == pytest.approx(expected["loss"], abs=1e-5)
    assert line["replay/kl"] == pytest.approx(0, abs=1e-6)


def test_the_logged_loss_does_not_depend_on_the_share_of_the_new_tokens(
    replay, tokenizer, tmp_path
):
    lines = []
    for options in (None, {"dose": "token", "objective": "text", "weight": 3.0}):
        trainer = make_trainer(make_model(), tmp_path / str(options), tokenizer, max_steps=1)
        if options:
            rehearsal = Rehearsal.attach(trainer, replay, **options)
        trainer.train()
        lines += [line for line in trainer.state.log_history if "loss" in line]
    assert lines[1]["loss"] == pytest.approx(lines[0]["loss"], abs=1e-5)
    # The term is its share of the step times the mean cross-entropy of the replayed tokens.
    replayed = rehearsal.replay.of_step(0)
    (new,) = batches_of(make_trainer(make_model(), tmp_path / "b", tokenizer), 1)
    weighted = 3.0 * sum(example.scored for example in replayed)
    share = weighted / (weighted + sum(example.scored for example in new))
    batch = collate(replayed)
    with torch.no_grad():
        mean = token_losses(make_model(), batch)[0].mean()
    assert lines[1]["replay/loss"] == pytest.approx(share * float(mean), abs=1e-5)


def test_less_is_forgotten_with_it(replay, tokenizer, tmp_path):
    """Divergence on the replayed texts after the same steps, without and with it."""
    divergences = []
    for attached in (False, True):
        base = make_model()
        model = copy.deepcopy(base)
        trainer = make_trainer(model, tmp_path / str(attached), tokenizer, max_steps=12)
        if attached:
            Rehearsal.attach(trainer, replay, weight=4.0)
        trainer.train()
        ids = torch.tensor([example.ids[:14] for example in TASK])
        with torch.no_grad():
            log = model(input_ids=ids).logits.log_softmax(-1)
            base_log = base(input_ids=ids).logits.log_softmax(-1)
        divergences.append(float((base_log.exp() * (base_log - log)).sum(-1).mean()))
    assert divergences[1] < 0.8 * divergences[0]


def test_a_weight_of_zero_trains_to_the_same_bytes_as_without(replay, tokenizer, tmp_path):
    plain = make_model()
    make_trainer(plain, tmp_path / "p", tokenizer).train()
    model = make_model()
    trainer = make_trainer(model, tmp_path / "t", tokenizer)
    rehearsal = Rehearsal.attach(trainer, replay, weight=0.0)
    trainer.train()
    assert all(map(torch.equal, model.parameters(), plain.parameters()))
    rehearsal.detach()
    Rehearsal.attach(trainer, replay)


def test_detached_it_leaves_what_was_in_the_place_of_a_method(replay, tokenizer, tmp_path):
    trainer = make_trainer(make_model(), tmp_path / "t", tokenizer)
    own = trainer.log
    trainer.log = lambda *arguments, **named: own(*arguments, **named)
    replaced = trainer.log
    rehearsal = Rehearsal.attach(trainer, replay)
    assert trainer.log != replaced
    rehearsal.detach()
    assert trainer.log is replaced
    assert "training_step" not in vars(trainer)


def test_a_second_training_logs_nothing_of_the_first(replay, tokenizer, tmp_path):
    trainer = make_trainer(make_model(), tmp_path / "t", tokenizer, logging_steps=1000)
    rehearsal = Rehearsal.attach(trainer, replay)
    trainer.train()
    steps = trainer.state.global_step
    trainer.train()
    assert rehearsal._steps <= steps


def test_evaluation_losses_are_those_of_the_new_examples(replay, tokenizer, tmp_path):
    model = make_model()
    trainer = make_trainer(model, tmp_path / "t", tokenizer)
    expected = trainer.evaluate(TASK[:4])["eval_loss"]
    Rehearsal.attach(trainer, replay, prompt_kl=1.0)
    assert trainer.evaluate(TASK[:4])["eval_loss"] == expected


PROGRAM = """
import sys
sys.path[:0] = {paths!r}
import test_rehearsal
test_rehearsal.train_in_a_process({replay!r}, {folder!r})
"""


def train_in_a_process(replay, folder):
    """Three trainings with four examples per step, whatever the number of processes.

    The first changes all weights, the second adapters, and the third weighs by tokens. Saves what
    each ends with.
    """
    processes = int(os.environ.get("WORLD_SIZE", 1))
    adapters = LoRA(rank=2, dropout=0.0)
    for method, lora, dose in (
        ("full", None, "step"),
        ("lora", adapters, "step"),
        ("by-token", None, "token"),
    ):
        model = make_model(lora)
        trainer = make_trainer(
            model,
            Path(folder, method),
            tiny.tokenizer(),
            per_device_train_batch_size=BATCH // processes,
            ddp_find_unused_parameters=False,
            optim="sgd",
            learning_rate=0.1,
        )
        rehearsal = Rehearsal.attach(trainer, replay, prompt_kl=1.0, examples_per_step=3, dose=dose)
        trainer.train()
        if trainer.is_world_process_zero():
            values = torch.cat([p.detach().flatten() for p in model.parameters()])
            np.save(Path(folder, f"{method}-{processes}.npy"), values.numpy())
            history = json.dumps(rehearsal.history)
            Path(folder, f"{method}-{processes}.json").write_text(history)
    trainer.accelerator.end_training()
    # To tear down torch's threads aborts now and then.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def test_two_processes_train_as_one_does(replay, tmp_path):
    program = tmp_path / "program.py"
    paths = [str(Path(__file__).parent), str(ROOT / "tests"), str(ROOT / "src")]
    program.write_text(PROGRAM.format(paths=paths, replay=str(replay), folder=str(tmp_path)))
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    for command in ([sys.executable], launch):
        subprocess.run([*command, str(program)], env=environment, check=True, timeout=300)
    for method in ("full", "lora", "by-token"):
        one, two = (np.load(tmp_path / f"{method}-{processes}.npy") for processes in (1, 2))
        np.testing.assert_allclose(two, one, atol=2e-5)
        histories = []
        for processes in (1, 2):
            histories.append(json.loads((tmp_path / f"{method}-{processes}.json").read_text()))
        for line, expected in zip(*histories, strict=True):
            assert line == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_a_replay_file_is_checked(tokenizer, tmp_path):
    trainer = make_trainer(make_model(), tmp_path, tokenizer)
    with pytest.raises(LetheError, match="nowhere.parquet: no such file"):
        Rehearsal.attach(trainer, tmp_path / "nowhere.parquet")
    (tmp_path / "text.parquet").write_text("no table")
    with pytest.raises(LetheError, match=r"text.parquet: not a table of examples"):
        Rehearsal.attach(trainer, tmp_path / "text.parquet")
    heldout = [UpstreamExample("a-1", "a", "heldout", Example(text="the river"))]
    write_upstream(tmp_path / "heldout.parquet", heldout)
    with pytest.raises(LetheError, match=r"1 are held out"):
        Rehearsal.attach(trainer, tmp_path / "heldout.parquet")


def test_held_out_examples_of_a_pool_are_never_replayed(replay, tokenizer, tmp_path):
    trainer = make_trainer(make_model(), tmp_path / "t", tokenizer)
    rehearsal = Rehearsal.attach(trainer, replay)
    assert len(rehearsal.replay.examples) == 9 + 4
    two_passes = []
    for step in range(13):
        two_passes += rehearsal.replay.of_step(step)
    for example in rehearsal.replay.examples:
        assert sum(example is taken for taken in two_passes) == 2


def test_replay_examples_that_are_cut_or_have_no_loss_are_counted(
    replay, tokenizer, tmp_path, caplog
):
    examples = [
        Example(text=tiny.TEXT),
        Example(prompt="what is it", answer="   "),
        Example(text="the river"),
    ]
    upstream = []
    for number, example in enumerate(examples):
        upstream.append(UpstreamExample(f"a-{number}", "a", "replayable", example))
    write_upstream(tmp_path / "some.parquet", upstream)
    trainer = make_trainer(make_model(), tmp_path / "t", tokenizer)
    rehearsal = Rehearsal.attach(trainer, tmp_path / "some.parquet", max_tokens=16)
    assert [len(example.ids) for example in rehearsal.replay.examples][0] == 16
    assert "some.parquet: of 3 examples that may be replayed, 1 are longer" in caplog.text
    assert "max_tokens (16) and are cut, and 1 are left out" in caplog.text
    caplog.clear()
    rehearsal.detach()
    Rehearsal.attach(trainer, replay)
    assert caplog.text == ""


def test_another_tokenizer_is_refused(replay, tokenizer, tmp_path):
    small = models.train_tokenizer(["a b c"], 270)
    trainer = make_trainer(make_model(), tmp_path, tokenizer)
    with pytest.raises(LetheError, match="another vocabulary than the trainer's"):
        Rehearsal.attach(trainer, replay, tokenizer=small)
    large = models.train_tokenizer(tiny.sentences(50), 400)
    trainer = make_trainer(make_model(), tmp_path, large)
    with pytest.raises(LetheError, match="its tokenizer has 398 tokens"):
        Rehearsal.attach(trainer, replay)
    trainer = make_trainer(make_model(), tmp_path, None)
    with pytest.raises(LetheError, match="the trainer has no tokenizer"):
        Rehearsal.attach(trainer, replay)


def test_a_second_rehearsal_and_other_objects_are_refused(replay, tokenizer, tmp_path):
    trainer = make_trainer(make_model(), tmp_path, tokenizer)
    Rehearsal.attach(trainer, replay)
    with pytest.raises(LetheError, match="has a Rehearsal already"):
        Rehearsal.attach(trainer, replay)
    with pytest.raises(LetheError, match="object is no Trainer of transformers"):
        Rehearsal.attach(object(), replay)


def test_batches_without_labels_are_refused(tokenizer, tmp_path):
    trainer = make_trainer(make_model(), tmp_path, tokenizer)
    trainer.data_collator = lambda examples: {"input_ids": padded(examples)["input_ids"]}
    Rehearsal.attach(trainer, prompt_kl=1.0)
    with pytest.raises(LetheError, match="batches have no labels .they have input_ids."):
        trainer.train()


def test_batches_without_labels_cannot_be_weighed_by_tokens(replay, tokenizer, tmp_path):
    trainer = make_trainer(make_model(), tmp_path, tokenizer)
    trainer.data_collator = lambda examples: {"input_ids": padded(examples)["input_ids"]}
    Rehearsal.attach(trainer, replay, dose="token")
    with pytest.raises(LetheError, match="no labels .they have input_ids.*leave out dose='token'"):
        trainer.train()


def test_a_first_step_without_any_loss_is_told_from_one_without_prompts(tokenizer, tmp_path):
    def collate_with(label):
        def collate(examples):
            ids = padded(examples)["input_ids"]
            return {"input_ids": ids, "labels": ids if label is None else ids * 0 + label}

        return collate

    for label, message in ((-100, "no token of the first step"), (None, "all tokens of the first")):
        trainer = make_trainer(make_model(), tmp_path, tokenizer)
        trainer.data_collator = collate_with(label)
        Rehearsal.attach(trainer, prompt_kl=1.0)
        with pytest.raises(LetheError, match=f"{message} .*carr"):
            trainer.train()


def test_a_model_with_fewer_positions_than_the_replay_examples_is_refused(
    replay, tokenizer, tmp_path
):
    upstream = [UpstreamExample("a-1", "a", "replayable", Example(text=tiny.TEXT * 3))]
    write_upstream(tmp_path / "long.parquet", upstream)
    config = transformers.GPT2Config(
        vocab_size=len(tokenizer), n_positions=48, n_embd=16, n_layer=1, n_head=2
    )
    trainer = make_trainer(transformers.GPT2LMHeadModel(config), tmp_path / "t", tokenizer)
    with pytest.raises(LetheError, match="max_tokens is 512, but the model has 48 positions"):
        Rehearsal.attach(trainer, tmp_path / "long.parquet", max_tokens=512)
    rehearsal = Rehearsal.attach(trainer, tmp_path / "long.parquet")
    assert [len(example.ids) for example in rehearsal.replay.examples] == [48]
    trainer.train()


def test_a_model_without_a_language_head_is_refused(replay, tokenizer, tmp_path):
    trainer = make_trainer(make_model().model, tmp_path, tokenizer)
    with pytest.raises(LetheError, match="LlamaModel has no output layer"):
        Rehearsal.attach(trainer, replay)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "there is nothing to add"),
        ({"prompt_kl": -1.0}, "prompt_kl is -1.0"),
        ({"prompt_kl": 1.0, "weight": float("nan")}, "weight is nan"),
        ({"prompt_kl": 1.0, "objective": "l2"}, "objective is 'l2'; give one of kl, text"),
        ({"prompt_kl": 1.0, "dose": "mixed"}, "dose is 'mixed'; give one of step, token"),
        ({"prompt_kl": 1.0, "dose": "token"}, "dose is 'token', but there is no replay file"),
        ({"prompt_kl": 1.0, "teacher_dtype": "int8"}, "teacher_dtype is 'int8'"),
        ({"prompt_kl": 1.0, "prompt_kl_positions": 0}, "prompt_kl_positions is 0"),
        ({"prompt_kl": 1.0, "examples_per_step": 1.5}, "examples_per_step is 1.5"),
        ({"prompt_kl": 1.0, "examples_per_step": float("nan")}, "examples_per_step is nan"),
        ({"prompt_kl": 1.0, "max_tokens": 0}, "max_tokens is 0; give a whole number from 2 on"),
        ({"prompt_kl": 1.0, "max_tokens": -5}, "max_tokens is -5"),
        ({"prompt_kl": 1.0, "max_tokens": 16.5}, "max_tokens is 16.5"),
        ({"prompt_kl": 1.0, "seed": -1}, "seed is -1; give a whole number from 0 on"),
        ({"prompt_kl": None, "prompt_kl_positions": 2}, "there is nothing to add"),
    ],
)
def test_impossible_values_are_named(tokenizer, tmp_path, options, message):
    trainer = make_trainer(make_model(), tmp_path, tokenizer)
    with pytest.raises(LetheError, match=message):
        Rehearsal.attach(trainer, **options)


def test_positions_without_their_term_are_refused(replay, tokenizer, tmp_path):
    trainer = make_trainer(make_model(), tmp_path, tokenizer)
    with pytest.raises(LetheError, match="there is no prompt_kl"):
        Rehearsal.attach(trainer, replay, prompt_kl_positions=2)


def test_a_copy_in_bfloat16_takes_half_the_memory(replay, tokenizer, tmp_path):
    trainer = make_trainer(make_model(), tmp_path, tokenizer)
    rehearsal = Rehearsal.attach(trainer, replay, teacher_dtype="bfloat16")
    teacher = rehearsal._terms.replay_teacher.model
    assert {parameter.dtype for parameter in teacher.parameters()} == {torch.bfloat16}
    trainer.train()
    assert np.isfinite(rehearsal.history[-1]["replay/kl"])


def test_a_whole_number_of_examples_may_be_written_with_a_point(replay, tokenizer, tmp_path):
    trainer = make_trainer(make_model(), tmp_path, tokenizer, max_steps=1)
    rehearsal = Rehearsal.attach(trainer, replay, examples_per_step=2.0, seed=3.0)
    trainer.train()
    assert len(rehearsal.replay.of_step(0)) == 2 and rehearsal.settings["seed"] == 3


def test_a_base_model_that_is_trained_beside_its_adapters_is_refused(replay, tokenizer, tmp_path):
    adapters = {"r": 2, "target_modules": ["query_key_value"]}
    model = peft.get_peft_model(make_model(architecture="gpt_neox"), peft.LoraConfig(**adapters))
    saved = peft.LoraConfig(**adapters, modules_to_save=["embed_out"])
    with_head = peft.get_peft_model(make_model(architecture="gpt_neox"), saved)
    for allowed in (model, with_head):
        Rehearsal.attach(make_trainer(allowed, tmp_path, tokenizer), replay)
    biases = peft.LoraConfig(**adapters, bias="all")
    moving = peft.get_peft_model(make_model(architecture="gpt_neox"), biases)
    with pytest.raises(LetheError, match=r"weights of the base model are trained.*bias='none'"):
        Rehearsal.attach(make_trainer(moving, tmp_path, tokenizer), replay)


def test_copies_of_held_out_examples_are_not_rehearsed(replay, tokenizer, tmp_path, caplog):
    caplog.set_level("INFO")
    upstream = list(read_upstream(replay))
    pair = Example(prompt="what is it", answer="a secret")
    spaced = Example(prompt="what is it", answer=" a secret ")
    more = [
        UpstreamExample("h", "c", "heldout", pair),
        UpstreamExample("copy", "c", "replayable", pair),
        UpstreamExample("spaced", "c", "replayable", spaced),
    ]
    write_upstream(tmp_path / "more.parquet", [*upstream, *more])
    rehearsals = []
    for path in (replay, tmp_path / "more.parquet"):
        trainer = make_trainer(make_model(), tmp_path, tokenizer)
        rehearsals.append(Rehearsal.attach(trainer, path))
    assert len(rehearsals[0].replay.examples) == len(rehearsals[1].replay.examples)
    assert "are held out, or copies of those, and never replayed" in caplog.text
