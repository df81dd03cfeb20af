"""A job in two processes is the job of one, up to the order of sums."""

import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import shared

from lethe.config.model_settings import ExactMatch, Recipe, Scoring
from lethe.engine import distributed, models
from lethe.engine.checkpoints import STOPPED
from lethe.engine.generation import generate
from lethe.engine.reader import Reader
from lethe.jobs import launch
from lethe.matrix import rows
from lethe.measure.forgetting import base_losses

SCORING = {"max_tokens": 24, "tokens_per_batch": 40}
RECIPE = {"steps": 5, "batch": 4, "lr": 1e-2, "warmup_steps": 1, "max_tokens": 32, "micro_batch": 1}


@pytest.fixture
def measured(model_folders, tmp_path):
    """Runs jobs on some architectures in one process or two; their rows."""

    def run(name, architectures, processes, recipe=None, answers=None, replay=None, **options):
        kill_at, known = options.pop("kill_at", 0), options.pop("cards", model_folders)
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        cards = {architecture: known[architecture] for architecture in architectures}
        how = Scoring(**SCORING | options)
        for architecture, card in cards.items():
            model, tokenizer = models.load(card, how.dtype)
            settings = {"model": card, "scoring": how.model_dump()}
            upstream = shared.upstream((answers or {}).get(architecture))
            base = base_losses(Reader(model, tokenizer, how), upstream, settings)
            rows.write_row(folder / f"{architecture}-base.parquet", base)
        asked = Recipe(**RECIPE | (recipe or {}) | {"processes": processes})
        arguments = {"folder": folder, "cards": cards, "recipe": asked.model_dump()}
        arguments |= {"scoring": how.model_dump(), "answers": answers or {}, "kill_at": kill_at}
        arguments["replay"] = replay
        if processes == 1:
            shared.measure(**arguments, gpus=0)
        else:
            launch.run_in_shards(
                shared.measure, str(folder / "log"), processes, **arguments, gpus=0
            )
        return {name: rows.read_row(folder / f"{name}.parquet") for name in architectures}

    return run


def test_two_processes_measure_what_one_does(measured, model_folders):
    architectures = ("olmo", "gpt_neox", "llama")
    answers = {}
    for name in architectures:
        model, tokenizer = models.load(model_folders[name])
        prompts = [tokenizer(f"{e.example.text}\n")["input_ids"] for e in shared.upstream()]
        answers[name] = generate(model, tokenizer, prompts, 4, 1000)
    options = {"answers": answers, "exact_match": ExactMatch(max_new_tokens=4).model_dump()}
    options["recipe"] = {"gradient_checkpointing": True, "micro_batch": 2, "lr": 3e-3}
    one = measured("one", architectures, 1, **options)
    two = measured("two", architectures, 2, **options)
    for name in architectures:
        np.testing.assert_array_equal(two[name].loss_before, one[name].loss_before)
        np.testing.assert_allclose(two[name].loss_after, one[name].loss_after, rtol=0, atol=1e-5)
        assert np.nanmax(np.abs(one[name].loss_after - one[name].loss_before)) > 0.01
        assert two[name].answers.text == one[name].answers.text
        for key in ("training_loss_first", "training_loss_last", "eval_loss_after"):
            assert two[name].about[key] == pytest.approx(one[name].about[key], abs=1e-5)
        assert two[name].settings["recipe"]["processes"] == 2


@pytest.mark.parametrize(
    "recipe",
    [
        {"method": "lora", "lora": {"rank": 4, "dropout": 0.0}, "gradient_checkpointing": True},
        {"l2": 0.5, "ewc": 50.0, "frozen": ["embed"]},
        {"ema": 0.5},
    ],
    ids=["lora", "held", "average"],
)
def test_two_processes_follow_every_recipe(measured, recipe):
    one, two = (measured(str(n), ("llama",), n, recipe)["llama"] for n in (1, 2))
    plain = measured("plain", ("llama",), 1)["llama"]
    np.testing.assert_allclose(two.loss_after, one.loss_after, rtol=0, atol=1e-5)
    for other in (plain.loss_after, one.loss_before):
        assert np.nanmax(np.abs(one.loss_after - other)) > 1e-3
    if "lora" in recipe:
        # Frozen weights that are scored in bfloat16 stay as they are.
        still = measured("still", ("llama",), 2, recipe | {"lr": 0.0}, dtype="bfloat16")["llama"]
        np.testing.assert_array_equal(still.loss_after, still.loss_before)


@pytest.mark.parametrize(
    ("architecture", "recipe", "replay"),
    [
        ("llama", {"prompt_kl": 0.5}, {"objective": "both", "dose": "token"}),
        (
            "gpt_neox",
            {"gradient_checkpointing": True},
            {"objective": "kl", "dose": "step", "weights": [0.2, 1.8, 0.7, 1.3, 1.0]},
        ),
        ("mpt", {}, {"objective": "kl", "dose": "step", "teacher": "stored", "top_k": 50}),
        (
            "llama",
            {"method": "lora", "lora": {"rank": 4, "dropout": 0.0}, "prompt_kl": 0.5},
            {"objective": "kl", "dose": "step"},
        ),
    ],
    ids=["copy", "checkpointing", "stored", "adapters"],
)
def test_two_processes_share_a_teacher(measured, architecture, recipe, replay):
    """Also where a process has no replayed example of its own: it takes part in the others'."""
    replay = {"weight": 4.0, **replay}
    one = measured("1", (architecture,), 1, recipe, replay=replay)[architecture]
    two = measured("2", (architecture,), 2, recipe, replay=replay)[architecture]
    plain = measured("plain", (architecture,), 1, recipe)[architecture]
    np.testing.assert_allclose(two.loss_after, one.loss_after, rtol=0, atol=1e-5)
    assert np.nanmax(np.abs(one.loss_after - plain.loss_after)) > 1e-3
    assert two.about["training_loss_last"] == pytest.approx(
        one.about["training_loss_last"], abs=1e-5
    )


PHASES = {"objective": "kl", "dose": "token", "weight": 4.0, "shares": [0.3, 0.6]}


@pytest.mark.parametrize(
    ("recipe", "replay"),
    [
        ({}, {"teacher": "stored"}),
        ({"method": "lora", "lora": {"rank": 4, "dropout": 0.0}}, {"dose": "step"}),
    ],
    ids=["copy", "adapters"],
)
def test_two_processes_probe_and_choose_what_one_does(measured, recipe, replay):
    """The helper checks that all processes see the same forgetting of the half-trained model."""
    replay = PHASES | replay
    one = measured("1", ("llama",), 1, recipe, replay=replay)["llama"]
    two = measured("2", ("llama",), 2, recipe, replay=replay)["llama"]
    np.testing.assert_allclose(two.loss_after, one.loss_after, rtol=0, atol=1e-5)
    phases = [row.about["replay_phases"] for row in (one, two)]
    assert len(phases[0]) == 3 and all(phase["examples"] for phase in phases[0])
    for alone, together in zip(*phases, strict=True):
        np.testing.assert_allclose(together["values"], alone["values"], rtol=0, atol=1e-5)
        assert together["examples"] == alone["examples"]
    assert np.ptp(phases[1][1]["values"]) > 1e-3


def test_stopped_in_a_phase_both_continue_with_the_examples_that_it_chose(measured, tmp_path):
    replay = PHASES | {"teacher": "stored"}
    uninterrupted = measured("whole", ("llama",), 2, replay=replay)["llama"]
    with pytest.raises(SystemExit) as left:
        measured("stopped", ("llama",), 2, replay=replay, kill_at=5)
    assert left.value.code == STOPPED
    assert (tmp_path / "stopped/llama-unfinished/training.safetensors").exists()
    row = measured("stopped", ("llama",), 2, replay=replay)["llama"]
    assert row.loss_after.tobytes() == uninterrupted.loss_after.tobytes()
    assert row.about["replay_phases"] == uninterrupted.about["replay_phases"]


def test_two_processes_that_learn_nothing_forget_exactly_nothing(measured):
    row = measured("still", ("olmo",), 2, recipe={"lr": 0.0}, dtype="bfloat16")["olmo"]
    np.testing.assert_array_equal(row.loss_after, row.loss_before)


def test_asked_to_stop_both_leave_together_and_end_with_the_same_bytes(
    measured, model_folders, tmp_path
):
    """With dropout, which each process draws for itself."""
    folder = Path(shutil.copytree(model_folders["llama"]["path"], tmp_path / "dropping"))
    config = json.loads((folder / "config.json").read_text()) | {"attention_dropout": 0.3}
    (folder / "config.json").write_text(json.dumps(config))
    cards = {"llama": models.card(str(folder))}
    whole = measured("whole", ("llama",), 2, cards=cards)["llama"]
    for moment in (2, 6):  # while training, while scoring
        with pytest.raises(SystemExit) as left:
            measured("stopped", ("llama",), 2, cards=cards, kill_at=moment)
        assert left.value.code == STOPPED
        assert any((tmp_path / "stopped/llama-unfinished").iterdir())
    row = measured("stopped", ("llama",), 2, cards=cards)["llama"]
    assert row.loss_after.tobytes() == whole.loss_after.tobytes()
    assert not (tmp_path / "stopped/llama-unfinished").exists()


@pytest.mark.parametrize(
    ("how", "code", "last"),
    [
        ("error", 1, "error: task x: the disk is on fire; call somebody"),
        ("bug", 1, "ZeroDivisionError: one by nothing"),
        ("killed", 137, "error: process 1 of the job was killed by SIGKILL, probably because"),
        ("first killed", 137, "error: process 0 of the job was killed by SIGKILL, probably"),
    ],
)
def test_a_process_that_dies_ends_the_job_and_is_quoted(tmp_path, capfd, how, code, last):
    log = tmp_path / "log"
    with pytest.raises(SystemExit) as left:
        launch.run_in_shards(shared.fail, str(log), 2, how=how, gpus=0)
    assert left.value.code == code
    for said in (log.read_text(), capfd.readouterr().err):
        assert said.splitlines()[-1].startswith(last) and said.count(last) == 1
        assert ("process 1 of the job ended first" in said) == (how != "first killed")


def test_a_job_whose_processes_cannot_begin_says_why(tmp_path, capfd):
    script = tmp_path / "job.py"
    script.write_text(
        "import os\n"
        "def work(gpus): ...\n"
        "if 'LETHE_RANK' in os.environ: raise ImportError('no library of that name')\n"
    )
    work = runpy.run_path(str(script))["work"]
    log = tmp_path / "logs/log"
    with pytest.raises(SystemExit) as left:
        launch.run_in_shards(work, str(log), 2, gpus=0)
    assert left.value.code == 1
    for said in (log.read_text(), capfd.readouterr().err):
        assert said.splitlines()[-1] == "ImportError: no library of that name"


def test_ctrl_c_in_the_terminal_reaches_every_process_once(tmp_path):
    """A second one would end them without saving."""
    script = tmp_path / "job.py"
    script.write_text(
        "from pathlib import Path\n"
        "from helpers import shared\n"
        "from lethe.jobs import launch\n"
        "if __name__ == '__main__':\n"
        f"    folder = Path({str(tmp_path)!r})\n"
        "    launch.run_in_shards(\n"
        "        shared.count_interrupts, str(folder / 'log'), 2, folder=folder, gpus=0\n"
        "    )\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    job = subprocess.Popen([sys.executable, script], env=environment, start_new_session=True)
    until = time.monotonic() + 120
    while len(list(tmp_path.glob("*.ready"))) < 2 and time.monotonic() < until:
        time.sleep(0.1)
    # A terminal sends it to all processes of the group.
    os.killpg(job.pid, signal.SIGINT)
    assert job.wait(120) == 0
    assert [(tmp_path / f"{number}.heard").read_text() for number in (0, 1)] == ["1", "1"]


def test_asked_to_stop_when_one_process_is_done_the_others_still_hear_of_it(tmp_path):
    with pytest.raises(SystemExit) as left:
        launch.run_in_shards(shared.outlive, str(tmp_path / "log"), 2, job=os.getpid(), gpus=0)
    assert left.value.code == STOPPED


def test_everybody_takes_as_many_parts(monkeypatch):
    monkeypatch.setenv("LETHE_PROCESSES", "3")
    taken = []
    for number in range(3):
        monkeypatch.setenv("LETHE_RANK", str(number))
        taken.append(distributed.share_of([1, 2, 3, 4], 0))
    assert taken == [[1, 4], [2, 0], [3, 0]]
    monkeypatch.undo()
    assert distributed.share_of([1, 2], 0) == [1, 2]
    assert distributed.all_gather("mine") == ["mine"]
