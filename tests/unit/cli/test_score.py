"""`lethe score`: the workflow's own base losses, of any model and adapter."""

import json
import os
import signal
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from helpers import forked, tiny

from lethe.cli.application import main
from lethe.config.model_settings import LoRA, Scoring
from lethe.data.examples import read_upstream, write_upstream
from lethe.engine import models
from lethe.engine.reader import Reader
from lethe.matrix import rows
from lethe.measure import forgetting

# The workflow's own settings, on the command line.
SETTINGS = ["--max-tokens", "24", "--tokens-per-batch", "64", "--threads", "1"]


@pytest.fixture(scope="session")
def base_model(model_folders):
    return model_folders["llama"]["path"]


@pytest.fixture
def pool(tmp_path):
    write_upstream(tmp_path / "pool.parquet", tiny.upstream(12))
    return tmp_path / "pool.parquet"


def score(model, pool, output, *options):
    return main(["score", str(model), "--pool", str(pool), "-o", str(output), *map(str, options)])


@pytest.fixture
def base(base_model, pool, tmp_path):
    assert score(base_model, pool, tmp_path / "base.parquet", *SETTINGS) == 0
    return tmp_path / "base.parquet"


def changed_model(base_model, folder, tokenizer, scale=1.1):
    model = transformers.AutoModelForCausalLM.from_pretrained(base_model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def changed_adapter(base_model, folder):
    model = transformers.AutoModelForCausalLM.from_pretrained(base_model)
    adapted = models.add_lora(model, LoRA(rank=2, dropout=0.0), 0)
    torch.manual_seed(0)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    adapted.save_pretrained(folder)
    return adapted


def test_it_writes_the_base_losses_of_the_workflow(base_model, pool, base):
    card = models.card(base_model)
    scoring = Scoring(max_tokens=24, tokens_per_batch=64)
    settings = {"model": card, "scoring": scoring.model_dump(mode="json")}
    upstream = read_upstream(pool)
    expected = forgetting.base_losses(Reader.load(card, scoring), upstream, settings=settings)
    row = rows.read_row(base)
    np.testing.assert_array_equal(row.loss_before, expected.loss_before)
    np.testing.assert_array_equal(row.loss_after, expected.loss_after)
    np.testing.assert_array_equal(row.n_tokens, expected.n_tokens)
    assert row.example_ids == expected.example_ids
    assert row.settings == expected.settings


def test_an_adapter_is_scored_on_its_base(base_model, pool, base, tmp_path, capsys):
    adapted = changed_adapter(base_model, tmp_path / "lora")
    output = tmp_path / "after.parquet"
    assert score(base_model, pool, output, "--adapter", tmp_path / "lora", "--base", base) == 0
    row = rows.read_row(output)
    before = rows.read_row(base)
    np.testing.assert_array_equal(row.loss_before, before.loss_before)
    reader = Reader(adapted.eval(), tiny.tokenizer(), Scoring(max_tokens=24, tokens_per_batch=64))
    tokens = reader.tokens([example.example for example in read_upstream(pool)]).examples
    np.testing.assert_allclose(row.loss_after, reader.losses(tokens, "expected").losses, atol=1e-5)
    assert set(row.settings["adapter"]) == {"adapter_config.json", "adapter_model.safetensors"}
    assert "mean forgetting" in capsys.readouterr().out


def test_a_fine_tuned_folder_is_scored_against_its_base(
    base_model, pool, base, tmp_path, tokenizer
):
    tuned = changed_model(base_model, tmp_path / "tuned", tokenizer)
    assert score(tuned, pool, tmp_path / "after.parquet", "--base", base) == 0
    row = rows.read_row(tmp_path / "after.parquet")
    assert row.settings["model"]["path"] == base_model
    assert row.settings["fine_tuned"]["path"] == str(tuned)
    assert np.abs(row.forgetting).max() > 1e-3


def test_nothing_asks_cuda_before_a_gpu_is_taken(base_model, pool, tmp_path, monkeypatch):
    """CUDA reads CUDA_VISIBLE_DEVICES once, so a later choice would have no effect."""
    asked = []
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(asked.append("cuda")))
    monkeypatch.setattr(models.devices, "claim", lambda gpus: asked.append(f"claim {gpus}"))
    assert score(base_model, pool, tmp_path / "base.parquet", *SETTINGS) == 0
    assert asked[0] == "claim 1"
    assert "cuda" in asked


def test_losses_of_single_tokens_are_kept(base_model, pool, tmp_path):
    output = tmp_path / "base.parquet"
    assert score(base_model, pool, output, "--tokens", *SETTINGS) == 0
    row = rows.read_row(output)
    losses = pq.read_table(tmp_path / "base.tokens.parquet")["losses"].to_pylist()
    assert [len(values) for values in losses] == row.n_tokens.tolist()
    means = [np.mean(values) for values in losses]
    np.testing.assert_allclose(means, row.loss_after, rtol=1e-5)


def test_token_losses_of_two_outputs_are_two_files(base_model, pool, tmp_path):
    assert score(base_model, pool, tmp_path / "run.a", "--tokens", *SETTINGS) == 0
    assert score(base_model, pool, tmp_path / "run.b", "--tokens", *SETTINGS) == 0
    assert (tmp_path / "run.a.tokens.parquet").exists()
    assert (tmp_path / "run.b.tokens.parquet").exists()


def test_token_losses_of_another_model_are_neither_kept_nor_overwritten(
    base_model, pool, base, tmp_path, tokenizer, capsys, caplog
):
    assert score(base_model, pool, base, "--tokens", *SETTINGS) == 0
    token_file = tmp_path / "base.tokens.parquet"
    content = token_file.read_bytes()
    # The row is there again, and its token losses are not measured again.
    assert score(base_model, pool, base, "--tokens", *SETTINGS) == 0
    assert token_file.read_bytes() == content
    tuned = changed_model(base_model, tmp_path / "tuned", tokenizer)
    base.rename(tmp_path / "moved.parquet")
    capsys.readouterr()
    assert score(tuned, pool, base, "--tokens", *SETTINGS) == 1
    error = capsys.readouterr().err
    assert f"model {base_model} instead of {tuned}" in error
    assert "base.tokens.parquet: exists and holds the token losses of another" in error
    assert "move it away" in error
    assert not base.exists()
    assert score(tuned, pool, base, *SETTINGS) == 0
    assert "not those of" in caplog.text
    assert token_file.read_bytes() == content
    token_file.unlink()
    assert score(tuned, pool, base, "--tokens", *SETTINGS) == 0
    # Files of earlier versions have no settings; they are judged by their means.
    table = pq.read_table(token_file)
    pq.write_table(table.replace_schema_metadata(None), token_file)
    content = token_file.read_bytes()
    assert score(tuned, pool, base, "--tokens", *SETTINGS) == 0
    base.unlink()
    (tmp_path / "moved.parquet").rename(base)
    capsys.readouterr()
    assert score(base_model, pool, base, "--tokens", *SETTINGS) == 1
    assert "its means are other losses" in capsys.readouterr().err
    assert token_file.read_bytes() == content


def score_and_stop(command: list[str], stop: bool) -> None:
    """Runs `lethe score` and prints every batch; if asked, SIGTERM comes with the second."""
    from lethe.engine import scoring

    run, batches = scoring._Scorer.run, []

    def counted(self, rows):
        batches.append(rows)
        print("batch", flush=True)
        if stop and len(batches) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return run(self, rows)

    scoring._Scorer.run = counted
    sys.exit(main(command))


@pytest.mark.parametrize("options", [[], ["--tokens"]], ids=["losses", "tokens"])
def test_a_run_that_was_stopped_continues(base_model, pool, tmp_path, options):
    """SIGTERM in the middle; the next run measures the rest and writes the same file."""
    expected = tmp_path / "whole.parquet"
    assert score(base_model, pool, expected, *options, *SETTINGS) == 0
    output = tmp_path / "base.parquet"
    command = ["score", base_model, "--pool", str(pool), "-o", str(output), *options, *SETTINGS]
    counts = []
    for stop in (True, False):
        status = 128 + signal.SIGTERM if stop else 0
        printed, _ = forked.call(score_and_stop, command, stop, folder=tmp_path, status=status)
        assert output.exists() != stop
        counts.append(printed.count("batch\n"))
    # Beside the batches, both runs try the model's output layer.
    assert 0 < counts[1] < len(tiny.upstream(12)) / 2
    row = rows.read_row(output)
    np.testing.assert_array_equal(row.loss_after, rows.read_row(expected).loss_after)
    assert not (tmp_path / ".base.parquet.unfinished").exists()
    if options:
        tables = []
        for name in ("whole", "base"):
            tables.append(pq.read_table(tmp_path / f"{name}.tokens.parquet"))
        assert tables[0].equals(tables[1])


def test_a_finished_file_is_left_and_another_measurement_never_overwrites_it(
    base_model, pool, base, tmp_path, capsys
):
    content = base.read_bytes()
    assert score(base_model, pool, base, *SETTINGS) == 0
    assert base.read_bytes() == content
    assert score(base_model, pool, base, "--max-tokens", 12) == 1
    assert "was measured with another scoring" in capsys.readouterr().err
    write_upstream(tmp_path / "other.parquet", tiny.upstream(12, seed=1))
    assert score(base_model, tmp_path / "other.parquet", base, *SETTINGS) == 1
    assert "was measured on another pool" in capsys.readouterr().err
    changed_adapter(base_model, tmp_path / "lora")
    assert score(base_model, pool, base, "--adapter", tmp_path / "lora", *SETTINGS) == 1
    assert "was measured with another adapter" in capsys.readouterr().err
    assert base.read_bytes() == content
    # Only the losses of tokens are missing.
    assert score(base_model, pool, base, "--tokens", *SETTINGS) == 0
    assert base.read_bytes() == content
    assert (tmp_path / "base.tokens.parquet").exists()


def test_another_base_pool_or_tokenizer_is_refused(
    base_model, pool, base, tmp_path, tokenizer, capsys
):
    changed_adapter(base_model, tmp_path / "lora")
    output = tmp_path / "after.parquet"
    adapter = ["--adapter", tmp_path / "lora", "--base", base]
    tuned = changed_model(base_model, tmp_path / "tuned", tokenizer)
    assert score(tuned, pool, output, *adapter) == 1
    assert "which differs (path, weights" in capsys.readouterr().err
    write_upstream(tmp_path / "other.parquet", tiny.upstream(12, seed=1))
    assert score(base_model, tmp_path / "other.parquet", output, *adapter) == 1
    assert "was measured on another pool" in capsys.readouterr().err
    assert score(base_model, pool, output, *adapter) == 0
    assert score(tuned, pool, tmp_path / "b.parquet", "--base", output) == 1
    assert "losses of a fine-tuned model" in capsys.readouterr().err
    coarse = models.train_tokenizer(["abc"], 260)
    coarse.save_pretrained(tuned)
    assert score(tuned, pool, tmp_path / "c.parquet", "--base", base) == 1
    assert "another tokenizer or chat template" in capsys.readouterr().err


def test_an_adapter_as_model_and_a_broken_adapter_are_named(base_model, pool, tmp_path, capsys):
    changed_adapter(base_model, tmp_path / "lora")
    output = tmp_path / "base.parquet"
    assert score(tmp_path / "lora", pool, output) == 1
    assert f"give both: {base_model} --adapter {tmp_path / 'lora'}" in capsys.readouterr().err
    assert score(base_model, pool, output, "--adapter", tmp_path) == 1
    assert "holds no adapter_config.json" in capsys.readouterr().err
    assert score(tmp_path / "nowhere" / "at" / "all", pool, output) == 1
    assert "no such folder" in capsys.readouterr().err


def test_an_adapter_of_another_base_is_a_warning(base_model, pool, tmp_path, caplog):
    changed_adapter(base_model, tmp_path / "lora")
    options = ["--adapter", tmp_path / "lora", *SETTINGS]
    assert score(base_model, pool, tmp_path / "a.parquet", *options) == 0
    assert "was trained on" not in caplog.text
    path = tmp_path / "lora" / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"base_model_name_or_path": "some/other"}))
    assert score(base_model, pool, tmp_path / "b.parquet", *options) == 0
    assert f"was trained on some/other, but is scored on {base_model};" in caplog.text


def test_an_output_that_cannot_be_written_is_refused_before_the_model_is_loaded(
    base_model, pool, tmp_path, monkeypatch, capsys
):
    (tmp_path / "file").write_text("x")
    monkeypatch.setattr(Reader, "load", lambda *_: pytest.fail("the model was loaded"))
    output = tmp_path / "file" / "base.parquet"
    assert score(base_model, pool, output, *SETTINGS) == 1
    problem = f"{output}: cannot be written (File exists: {tmp_path / 'file'}); choose another name"
    assert problem in capsys.readouterr().err


def test_four_bits_need_cuda(base_model, pool, tmp_path, capsys):
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    assert score(base_model, pool, tmp_path / "base.parquet", "--quantize", "4bit") == 1
    assert "4-bit weights need a GPU with CUDA" in capsys.readouterr().err
    assert score(base_model, pool, tmp_path / "base.parquet", "--quantize", "3bit") == 2


def test_json_and_wrong_values(base_model, pool, tmp_path, capsys):
    output = tmp_path / "base.parquet"
    assert score(base_model, pool, output, "--json", *SETTINGS) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["examples"] == 12
    assert facts["mean_loss"] > 0
    assert score(base_model, pool, output, "--dtype", "int8") == 2
    assert "--dtype int8" in capsys.readouterr().err
    assert score(base_model, pool, output, "--tokens-per-batch", "²") == 2
    assert "--tokens-per-batch ²" in capsys.readouterr().err
