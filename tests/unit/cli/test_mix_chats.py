"""`lethe mix` from the command line."""

import json

import numpy as np
import pytest
from helpers.chats import pool, tokenizer, write_records

from lethe.cli.application import main
from lethe.completion.predictor import Predictor
from lethe.data.examples import ids_of, upstream_digest, write_upstream
from lethe.data.tokens import tokenise
from lethe.data.training_rows import read_new_data
from lethe.matrix.rows import Row, write_row

POOL = pool()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    write_upstream(tmp_path / "pool.parquet", POOL)
    write_records(tmp_path / "chats.jsonl", "messages")
    values = np.linspace(0, 5, len(POOL), dtype=np.float32)
    row = Row(
        example_ids=ids_of(POOL),
        loss_before=np.ones_like(values),
        loss_after=1 + values,
        n_tokens=np.ones(len(POOL), dtype=np.int32),
        settings={"upstream": upstream_digest(POOL)},
    )
    write_row(tmp_path / "lost.parquet", row)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def mix(*arguments):
    return main(["mix", "chats.jsonl", "--pool", "pool.parquet", *arguments])


def test_it_writes_rows_and_prints_the_dose_and_the_trainers_settings(folder, capsys):
    assert mix() == 0
    text = capsys.readouterr().out
    assert "chats.jsonl: 20 chats read; 30 answers; 10 conversations of several turns" in text
    assert "pool.parquet: 10 held out, not replayed" in text
    assert "mixed/train_with_replay.jsonl: 22 rows" in text
    assert "Dose: " in text and " replayed loss words over 70 new ones, " in text
    assert text.endswith((folder / "mixed/trl.yaml").read_text())
    assert 'data_files: "mixed/train_with_replay.jsonl"' in text


def test_it_says_how_many_different_examples_are_replayed(folder, capsys):
    assert mix() == 0
    text = capsys.readouterr().out
    assert "mixed/replay.parquet: 2 examples, for lethe.integrations.Rehearsal" in text
    assert "repeated" not in text
    assert mix("--ratio", "4", "-o", "many") == 0
    text = capsys.readouterr().out
    assert "many/replay.parquet: 30 examples" in text
    assert "pool.parquet: the 80 replayed rows hold 30 different examples, so some are rep" in text
    assert mix("--ratio", "4", "-o", "json", "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["different_examples"], summary["replayed_rows"]) == (30, 80)


def test_what_was_lost_decides_what_is_replayed(folder, capsys):
    assert mix("--lost", "lost.parquet", "--json", "--for", "jsonl") == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["rows"]["replay.messages.jsonl"] == 2
    lines = (folder / "mixed/replay.messages.jsonl").read_text().splitlines()
    losses = [json.loads(line)["measured_forgetting"] for line in lines]
    assert min(losses) > 3.5
    assert summary["settings"] == []


def test_a_predictor_gives_the_mean_of_the_fine_tune_and_of_every_domain_first(folder, capsys):
    index = np.arange(0, len(POOL), 5)
    predictor = Predictor(
        train=np.random.default_rng(0).normal(1, 0.3, size=(6, len(POOL))),
        example_ids=ids_of(POOL),
        domains=np.array([example.domain for example in POOL]),
        index=index,
        probes=[POOL[i].example for i in index],
        max_tokens=40,
    )
    predictor.save(folder / "predictor.npz")
    predicted = ("--predictor", "predictor.npz", "--probes", "lost.parquet")
    assert mix(*predicted) == 0
    text = capsys.readouterr().out
    values = np.linspace(0, 5, len(POOL), dtype=np.float32)[index]
    assert text.startswith(predictor.predict(values).summary(predictor.top_tenth))
    assert mix(*predicted, "--json", "-o", "other") == 0
    summary = json.loads(capsys.readouterr().out)["predicted"]
    assert summary["mean"]["low"] < summary["mean"]["value"] < summary["mean"]["high"]
    assert set(summary["domains"]) == {example.domain for example in POOL}
    assert 0 <= summary["top_tenth"] <= 1


def test_the_dose_counts_the_tokens_of_a_model(folder, capsys):
    reader = tokenizer()
    reader.save_pretrained(folder / "model")
    assert mix("--model", "model", "--json") == 0
    dose = json.loads(capsys.readouterr().out)["dose"]
    assert dose["unit"] == "tokens"
    examples = read_new_data(folder / "mixed/new.jsonl").examples
    tokens = tokenise(reader, examples, 4000).examples
    assert dose["new"] == sum(example.scored for example in tokens)
    replayed = read_new_data(folder / "mixed/plain/replay.messages.jsonl").examples
    tokens = tokenise(reader, replayed, 4000).examples
    assert dose["replayed"] == sum(example.scored for example in tokens)
    assert mix("--model", "none", "-o", "other") == 1
    assert "error: --model none: cannot be loaded" in capsys.readouterr().err


def test_the_dose_is_that_of_the_trainer(folder, capsys):
    replayed = {}
    for trainer in ("trl", "axolotl"):
        assert mix("--json", "--ratio", "0.5", "--for", trainer, "-o", trainer) == 0
        replayed[trainer] = json.loads(capsys.readouterr().out)["dose"]["replayed"]
    # Axolotl trains on all words of a plain text.
    assert replayed["axolotl"] > replayed["trl"]


def test_nothing_is_overwritten(folder, capsys):
    assert mix() == 0
    before = (folder / "mixed/train_with_replay.jsonl").read_bytes()
    assert mix("--seed", "1") == 1
    assert "error: mixed: is not empty, and nothing in it is overwritten" in capsys.readouterr().err
    assert (folder / "mixed/train_with_replay.jsonl").read_bytes() == before


def test_rows_that_a_trainer_cannot_read_are_refused_before_anything_is_written(folder, capsys):
    write_records(folder / "chats.jsonl", "text")
    assert mix("--for", "megatron-bridge") == 1
    assert "use --for jsonl" in capsys.readouterr().err
    assert not (folder / "mixed").exists()
    assert mix("--for", "jsonl") == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["--ratio", "0"],
        ["--lost", "lost.parquet", "--predictor", "p.npz", "--probes", "lost.parquet"],
        ["--predictor", "p.npz"],
        ["--probes", "lost.parquet"],
        ["--sibling", "lost.parquet"],
        ["--for", "nobody"],
    ],
)
def test_a_wrong_use_is_refused_before_anything_is_written(folder, arguments):
    assert mix(*arguments) == 2
    assert not (folder / "mixed").exists()


def test_a_missing_file_is_one_line(folder, capsys):
    for arguments in (["--lost", "x.parquet"], ["--predictor", "x.npz", "--probes", "x.parquet"]):
        assert mix(*arguments) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: x.") and error.count("\n") == 1
    assert main(["mix", "none.jsonl", "--pool", "pool.parquet"]) == 1


def test_a_sibling_without_a_matrix_is_refused_before_anything_is_run(folder, capsys):
    arguments = ["learn", "model", "--pool", "pool.parquet", "--sibling", "results/none/model"]
    assert main(arguments) == 1
    assert "--sibling results/none/model: has no Z.parquet" in capsys.readouterr().err
