"""The example that `lethe init` writes runs as it stands; here with a tiny model in its place."""

import re

import pytest
from helpers import chats, tiny
from helpers.experiment import ROOT

from lethe.cli.application import main
from lethe.engine import models
from lethe.matrix.rows import read_row


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LETHE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    assert main(["init", "own"]) == 0
    reader = chats.tokenizer()
    model = models.from_scratch("llama", tiny.sizes(context=1024), tiny.VOCABULARY, 0)
    model.resize_token_embeddings(len(reader))
    model.save_pretrained("model")
    reader.save_pretrained("model")
    path = tmp_path / "own/own-data.yaml"
    text = path.read_text()
    ours = "models:\n  tiny: {source: folder, path: model}\n\nrecipe:"
    text = re.sub(r"models:\n.*?\nrecipe:", ours, text, flags=re.S)
    # The tiny tokenizer has a token for almost every letter.
    path.write_text(text.replace("max_tokens: 256", "max_tokens: 800"))
    return tmp_path


def test_chats_of_several_turns_run_through_the_whole_workflow(folder):
    assert main(["run", "own/own-data.yaml", "--cores", "1"]) == 0
    results = folder / "results/own-data"
    assert (results / "report.html").exists()
    for task, answers in (("orders", 14), ("returns", 13), ("support", 27)):
        row = read_row(results / f"tiny/rows/{task}.parquet")
        assert len(row.example_ids) == 48
        assert row.about["training_truncated"] == 0
        log = (results / f"logs/prepare_task/{task}.log").read_text()
        assert f"{answers} answers" in log
        assert "left out" not in log
