"""`lethe learn`, from a pool to a predictor, on a tiny model."""

import json

import numpy as np
import yaml
from helpers import tiny
from helpers.experiment import TASKS, make_experiment

from lethe.cli.application import main
from lethe.completion.predictor import Predictor
from lethe.data.examples import upstream_digest, write_upstream
from lethe.matrix import rows


def test_a_predictor_is_learned_from_a_pool(tmp_path, monkeypatch, capfd):
    make_experiment(tmp_path)
    monkeypatch.chdir(tmp_path)
    model = tiny.model("llama", scale=2)
    model.save_pretrained("base")
    tiny.tokenizer().save_pretrained("base")
    write_upstream(tmp_path / "pool.parquet", tiny.upstream(24))
    (tmp_path / "sources.yaml").write_text(
        yaml.safe_dump({"sources": {"local": {"kind": "files", "folder": "texts"}}})
    )
    (tmp_path / "table.csv").write_text(TASKS)
    command = ["learn", "base", "--pool", "pool.parquet", "--tasks", "4", "--probes", "6"]
    command += ["--table", "table.csv", "--sources", "sources.yaml", "--max-tokens", "24"]
    command += ["--steps", "6", "--lr", "0.01", "-o", "p.npz"]
    assert main([*command, "--plan"]) == 0
    text = capfd.readouterr().out
    assert "4 fine-tunes and one scoring of the base model: about" in text
    assert "4 tasks are few: below about 5, probes add nothing" in text
    assert not (tmp_path / "p.npz").exists()
    assert main([*command, "--json"]) == 0
    facts = json.loads(capfd.readouterr().out)
    assert (facts["fine_tunes"], facts["tasks"], facts["probes"]) == (4, 4, 6)
    assert -1 <= facts["spearman"] <= 1
    predictor = Predictor.load(tmp_path / "p.npz")
    assert predictor.train.shape == (4, 24)
    assert predictor.base_losses is not None
    base = rows.read_row(tmp_path / "results/learn-p/model/base.parquet")
    assert base.settings["upstream"] == upstream_digest(tiny.upstream(24))
    # The losses of lethe score on the same pool are those of the experiment.
    options = ["--pool", "pool.parquet", "--max-tokens", "24", "--threads", "1"]
    assert main(["score", "base", *options, "-o", "base.parquet"]) == 0
    scored = rows.read_row(tmp_path / "base.parquet")
    np.testing.assert_allclose(scored.loss_after, base.loss_after, atol=1e-6)
    assert main([*command, "--dtype", "float16"]) == 2
    assert "give float32 or autocast" in capfd.readouterr().err
    # Another setting under the same name is refused.
    assert main([*command, "--steps", "7"]) == 1
    assert "exists with other settings" in capfd.readouterr().err
    # A row that a failed job has lost is measured again, although Z is there.
    row = tmp_path / "results/learn-p/model/rows/add.parquet"
    row.unlink()
    assert main(command) == 0
    assert row.exists()
