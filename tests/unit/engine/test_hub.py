"""A hub that goes away in the middle of a download, and one that was there before."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.hub import COMMIT

from lethe.engine.hub import commit_of, unreachable
from lethe.errors import LetheError

# huggingface_hub waits between its attempts; here nothing is gained by it.
DRIVER = """
import json, os, sys, time
from helpers.hub import Hub
hub = Hub("someone/tiny", sys.argv[1])
os.environ |= hub.environment
time.sleep = lambda _: None
from lethe.engine import models
from lethe.errors import LetheError
card, told = {"path": "someone/tiny", "revision": None}, []
def load():
    try:
        told.append(sum(p.double().sum().item() for p in models.load(card)[0].parameters()))
    except LetheError as error:
        told.append(str(error))
for phase in sys.argv[2:]:
    hub.breaks, hub.gone = phase == "breaks", phase == "gone"
    card["path"] = "someone/else" if phase == "other" else "someone/tiny"
    if phase == "stopped":
        hub.stop()
    load()
print(json.dumps(told))
"""


@pytest.fixture
def loaded(model_folders, tmp_path):
    """Loads the model from a hub that goes through phases: what came of each, and stderr."""
    tests = Path(__file__).parents[2]
    paths = os.pathsep.join([str(tests.parent / "src"), str(tests)])

    def run(*phases):
        done = subprocess.run(
            [sys.executable, "-c", DRIVER, model_folders["llama"]["path"], *phases],
            env=os.environ | {"PYTHONPATH": paths, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"},
            **{"capture_output": True, "text": True, "timeout": 240},
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1]), done.stderr

    return run


def test_a_hub_that_breaks_off_is_named_and_one_that_is_gone_is_not_missed(loaded):
    (broken, whole), _ = loaded("breaks", "whole")
    (gone, stopped, other), said = loaded("gone", "stopped", "other")
    for error, name in ((broken, "someone/tiny"), (other, "someone/else")):
        assert f"model {name}: cannot be loaded: the hub does not answer" in error
        assert "finished rows stay" in error and f"hf download {name}" in error
    assert isinstance(whole, float) and whole == gone == stopped
    assert "the hub does not answer; used as downloaded" in said


CARD = """
import json, os, sys
from helpers.hub import Hub
hub = Hub("someone/tiny", sys.argv[1])
os.environ |= hub.environment
from lethe.engine import models
card = models.card("someone/tiny")
hub.requests.clear()
models.load(card)
print(json.dumps([card, hub.requests]))
"""


def test_the_commit_of_a_model_on_the_hub_is_pinned_in_its_card(model_folders, tmp_path):
    tests = Path(__file__).parents[2]
    paths = os.pathsep.join([str(tests.parent / "src"), str(tests)])
    done = subprocess.run(
        [sys.executable, "-c", CARD, model_folders["llama"]["path"]],
        env=os.environ | {"PYTHONPATH": paths, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"},
        **{"capture_output": True, "text": True, "timeout": 240},
    )
    assert done.returncode == 0, done.stderr
    card, requests = json.loads(done.stdout.splitlines()[-1])
    assert card["commit"] == COMMIT and card["weights"] == {}
    assert any(COMMIT in path for path in requests if path.endswith("model.safetensors"))


def test_a_revision_that_is_a_commit_needs_no_hub():
    assert commit_of("nobody/nothing", COMMIT) == COMMIT


@pytest.mark.parametrize(
    ("kind", "expected"), [(ConnectionResetError, True), (TimeoutError, True), (ValueError, False)]
)
def test_a_broken_connection_is_found_among_the_causes(kind, expected):
    try:
        try:
            raise kind("inner")
        except kind as inner:
            raise OSError("cannot load") from inner
    except OSError as error:
        found = unreachable(error)
    assert isinstance(found, kind) if expected else found is None


def test_an_adapter_on_the_hub_is_named_as_such(monkeypatch):
    """Its repository holds no config.json, so that its commit is looked up in vain."""

    def cached_file(path, name, revision=None):
        if name == "config.json":
            raise OSError(f"{path} does not appear to have a file named config.json")
        return f"/cache/{name}"

    monkeypatch.setattr("transformers.utils.hub.cached_file", cached_file)
    with pytest.raises(LetheError, match=r"model someone/lora: it holds an adapter .*merge_and_un"):
        commit_of("someone/lora", None)
