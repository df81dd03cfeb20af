"""Sequences of fine-tunes through the graph: weights handed on, kills, and orders that grow."""

import shutil
import signal
import subprocess
import time

import numpy as np
import pandas as pd
import pytest
from helpers.experiment import Workspace, make_experiment

from lethe.matrix import rows

pytestmark = pytest.mark.xdist_group("other workflow")

SEQUENCES = {
    "orders": {"short": ["add", "upper"], "long": ["reverse", "double", "add"]},
    "runs": {
        "none": {"replay": "none"},
        "both": {"replay": "random", "earlier": 0.5, "orders": ["long"]},
    },
    "models": ["olmo"],
    "probes": 5,
}


@pytest.fixture(scope="module")
def sequenced(tmp_path_factory) -> Workspace:
    """The tables of the sequences; tests leave this folder as it is."""
    folder = tmp_path_factory.mktemp("sequences") / "workspace"
    make_experiment(folder)
    workspace = Workspace(folder)
    with workspace.edit() as settings:
        del settings["models"]["pythia"]
        settings["replay"]["heldout_kl"] = True
        settings["sequences"] = SEQUENCES
    make(workspace)
    return workspace


@pytest.fixture
def changed(sequenced, tmp_path) -> Workspace:
    """A copy of the finished sequences, with its times, to change."""
    shutil.copytree(sequenced.folder, tmp_path / "workspace", symlinks=True)
    return Workspace(tmp_path / "workspace")


def make(workspace, *options: str) -> str:
    return workspace.run("--until", "gather_sequences", *options)


def steps(workspace) -> dict[str, rows.Row]:
    folder = workspace.results / "olmo/sequences"
    files = sorted(folder.glob("*/*/seed0/*.parquet"))
    return {str(path.relative_to(folder)): rows.read_row(path) for path in files}


def weights(workspace) -> dict[str, bytes]:
    folder = workspace.results / "olmo/sequences"
    files = sorted(folder.glob("*/*/seed0/*.safetensors"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_weights_are_handed_on_and_removed_when_the_next_step_has_them(sequenced):
    assert set(steps(sequenced)) == {
        "short/none/seed0/step1-add.parquet",
        "short/none/seed0/step2-upper.parquet",
        "long/none/seed0/step1-reverse.parquet",
        "long/none/seed0/step2-double.parquet",
        "long/none/seed0/step3-add.parquet",
        "long/both/seed0/step1-reverse.parquet",
        "long/both/seed0/step2-double.parquet",
        "long/both/seed0/step3-add.parquet",
    }
    assert set(weights(sequenced)) == {
        "short/none/seed0/step2-upper.safetensors",
        "long/none/seed0/step3-add.safetensors",
        "long/both/seed0/step3-add.safetensors",
    }
    first = steps(sequenced)["short/none/seed0/step1-add.parquet"]
    alone = rows.read_row(sequenced.results / "olmo/rows/add.parquet")
    assert np.array_equal(first.loss_after, alone.loss_after)
    replayed = steps(sequenced)["long/both/seed0/step3-add.parquet"]
    assert replayed.about["replayed_upstream"] == replayed.about["replayed"] // 2
    assert set(replayed.about["task_losses"]) == {"reverse", "double", "add"}


def test_the_tables_have_every_order_and_run(sequenced):
    comparison = pd.read_csv(sequenced.results / "olmo/sequence_comparison.csv")
    assert set(comparison.run) == {"none", "both", "multitask"}
    measures = pd.read_csv(sequenced.results / "olmo/sequence_measures.csv")
    assert set(measures[measures.run == "none"].order) == {"short", "long"}
    # Where no loss rises, there is no mean rise.
    assert measures[measures.measure != "rise_mean"].value.notna().all()
    divergences = comparison[comparison.measure == "heldout_kl"]
    assert set(divergences.run) == {"none", "both", "multitask"} and (divergences["mean"] > 0).all()
    assert (comparison[comparison.measure == "drift"]["mean"] > 0).all()
    for name in ("steps", "tasks", "additivity", "prediction", "choice"):
        assert len(pd.read_csv(sequenced.results / f"olmo/sequence_{name}.csv"))
    assert sequenced.planned().get("sequence_step") is None


def test_a_task_that_is_added_to_an_order_runs_only_what_follows(changed):
    before = steps(changed)
    orders = SEQUENCES["orders"] | {"short": ["add", "upper", "double"]}
    changed.change(sequences={"orders": orders})
    planned = changed.planned()
    assert planned["last_step"] == 1 and "sequence_step" not in planned
    assert not {"measure_row", "pretrain_model", "score_base"} & set(planned)
    make(changed)
    after = steps(changed)
    assert set(after) - set(before) == {"short/none/seed0/step3-double.parquet"}
    for name, row in before.items():
        assert after[name].about == row.about
    # The step that was the last has handed its weights on.
    assert "short/none/seed0/step2-upper.safetensors" not in weights(changed)


def test_a_killed_sequence_goes_on_and_ends_with_the_same_bytes(sequenced, changed):
    folder = changed.results / "olmo/sequences/long"
    shutil.rmtree(folder)
    # Snakemake does not make a missing row again as long as the tables that read it exist.
    for table in changed.results.glob("olmo/sequence_*.csv"):
        table.unlink()
    process = subprocess.Popen(
        changed.command("--until", "gather_sequences"),
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 300
    while len(steps_so_far(folder)) < 3:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    subprocess.run(["pkill", "-KILL", "-s", str(process.pid)])
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 3 <= len(steps_so_far(folder)) < 6
    make(changed)
    again = steps(changed)
    for name, row in steps(sequenced).items():
        assert np.array_equal(again[name].loss_after, row.loss_after)
        assert again[name].about["task_losses"] == row.about["task_losses"]
    assert weights(changed) == weights(sequenced)


def steps_so_far(folder):
    return list(folder.glob("*/seed0/step*.parquet"))
