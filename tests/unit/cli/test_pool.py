"""`lethe pool` draws the pool that the workflow would draw."""

import json
import re
from collections import Counter

import pytest

from lethe.cli.application import main
from lethe.data.examples import read_upstream

SOURCES = """
seed: 3
sources:
  code: {kind: stdlib}
  mine: {kind: files, folder: texts, format: chat}
upstream:
  examples: 20
  heldout: 0.25
  words: 12
  domains: {code: "code:json", chats: "mine:chats.jsonl"}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "texts").mkdir()
    lines = []
    for number in range(14):
        turns = [
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": f"How many sacks on day {number}?"},
            {"role": "assistant", "content": f"{number} sacks."},
        ]
        lines.append(json.dumps({"messages": turns}))
    lines += [lines[0], json.dumps({"messages": turns[:2]})]
    (tmp_path / "texts/chats.jsonl").write_text("\n".join(lines))
    (tmp_path / "pool.yaml").write_text(SOURCES)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_pool_is_drawn_with_a_quarter_held_out(folder, capsys):
    assert main(["pool", "pool.yaml", "-o", "pool.parquet", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["domains"]["chats"] == {
        "empty": 1,
        "heldout": 2,
        "repeated": 1,
        "repeated_pieces": 0,
        "replayable": 8,
        "surrogates": 0,
    }
    pool = list(read_upstream("pool.parquet"))
    assert Counter(example.split for example in pool) == {"replayable": 16, "heldout": 4}
    assert summary["examples"] == 20
    assert all(example.example.chat for example in pool if example.domain == "chats")
    content = (folder / "pool.parquet").read_bytes()
    assert main(["pool", "pool.yaml"]) == 0
    text = capsys.readouterr().out
    assert "chats: 8 replayable, 2 held out; 1 repeated and 1 empty records left out" in text
    assert text.endswith("pool.parquet: 20 examples\n")
    assert (folder / "pool.parquet").read_bytes() == content


TWICE = """
sources:
  mine: {kind: files, folder: texts}
upstream:
  examples: 8
  heldout: 0.25
  words: 4
  domains: {one: "mine:one.txt", two: "mine:two.txt"}
"""


def test_repeated_pieces_are_counted_also_across_domains(folder, capsys):
    pieces = [f"{number} sacks of flour" for number in range(12)]
    (folder / "texts/one.txt").write_text(" ".join([*pieces[:6], *pieces[:2]]))
    # Of these eight pieces, four are those of the other domain.
    (folder / "texts/two.txt").write_text(" ".join(pieces[2:10]))
    (folder / "twice.yaml").write_text(TWICE)
    assert main(["pool", "twice.yaml", "-o", "twice.parquet"]) == 0
    text = capsys.readouterr().out
    left_out = "0 repeated and 0 empty records left out, and {} pieces that repeat an earlier one"
    assert f"one: 3 replayable, 1 held out; {left_out.format(2)}" in text
    assert f"two: 3 replayable, 1 held out; {left_out.format(4)}" in text
    (folder / "twice.yaml").write_text(TWICE.replace("examples: 8", "examples: 10"))
    assert main(["pool", "twice.yaml", "-o", "more.parquet"]) == 1
    error = capsys.readouterr().err
    assert "upstream.domains.two: 4 examples of 4 words, 5 wanted (4 more repeat an" in error
    assert "its source has only 32 words: give the domain more text" in error
    assert "raise upstream.corpus_words" not in error


def test_halves_of_surrogate_pairs_are_counted(folder, capsys):
    path = folder / "texts/chats.jsonl"
    path.write_text(path.read_text().replace("sacks on day 1?", "sacks on day \\ud83d?"))
    assert main(["pool", "pool.yaml"]) == 0
    text = capsys.readouterr().out
    assert re.search("^chats: .*; 1 records with half of a surrogate pair", text, re.M)
    assert not re.search("^code: .*surrogate", text, re.M)


def test_a_whole_experiment_gives_the_pool_of_its_upstream_section(folder, capsys):
    (folder / "whole.yaml").write_text(f"experiment: x\ntasks: none.csv\nmodels: {{}}\n{SOURCES}")
    assert main(["pool", "pool.yaml", "-o", "a.parquet"]) == 0
    assert main(["pool", "whole.yaml", "-o", "b.parquet"]) == 0
    assert (folder / "a.parquet").read_bytes() == (folder / "b.parquet").read_bytes()


def test_another_pool_is_not_overwritten(folder, capsys):
    assert main(["pool", "pool.yaml"]) == 0
    (folder / "pool.yaml").write_text(SOURCES.replace("seed: 3", "seed: 4"))
    assert main(["pool", "pool.yaml"]) == 1
    assert "pool.parquet: exists and holds another pool" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("examples: 20", "exampels: 20", "line 7: upstream.exampels: no such key"),
        ("code:json", "cod:json", "line 10: upstream.domains.code: source 'cod:json' names no key"),
        ("seed: 3", "experimen: x", "line 2: experimen: no such key"),
        ("examples: 20", "examples: 9000", "upstream.domains.code: "),
    ],
)
def test_a_problem_is_one_line_with_the_files_line(folder, capsys, old, new, message):
    (folder / "pool.yaml").write_text(SOURCES.replace(old, new))
    assert main(["pool", "pool.yaml"]) == 1
    error = capsys.readouterr().err
    assert message in error.splitlines()[-1] if "problem" not in error else message in error
    assert not (folder / "pool.parquet").exists()


def test_a_file_that_does_not_exist_is_named(folder, capsys):
    assert main(["pool", "none.yaml"]) == 1
    assert "error: none.yaml: " in capsys.readouterr().err


def test_a_finished_pool_is_not_drawn_again(folder, capsys):
    (folder / "pool.yaml").write_text("sources: {}\nupstream: {pool: pool.parquet}\n")
    assert main(["pool", "pool.yaml"]) == 1
    error = capsys.readouterr().err
    assert "line 2: upstream.pool: 'pool.parquet' is a finished pool" in error
    assert error.count("upstream.pool: ") == 1
