"""Damaged and random input ends in a right result or in a LetheError, never in another error."""

import gzip
import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from helpers import tiny
from helpers.experiment import ROOT
from pydantic import TypeAdapter

from lethe.config.data_settings import Source
from lethe.config.loading import load_experiment
from lethe.config.yaml_file import read_yaml
from lethe.data.examples import Example, read_examples, read_upstream, write_upstream
from lethe.data.sources import read_source
from lethe.data.tokens import tokenise
from lethe.errors import LetheError

ROUNDS = 150
JUNK = [
    '"',
    ",",
    "\n",
    "\r\n",
    "{",
    "}",
    "[",
    "]",
    ":",
    "\ufeff",
    "\x00",
    "é",
    "\ud83d",
    "*a",
    "&a",
]
JUNK += [
    "null",
    "NaN",
    "-",
    "- ",
    "  ",
    "\t",
    "{{",
    "}}",
    "{%",
    "%}",
    "1e999",
    "'",
    "#",
    "|",
    "!!x",
]
VALUES = [None, True, 0, -1.5, float("nan"), "", "text", b"bytes", [], ["a"], {}, {"text": "a"}]


def damaged(text, rng):
    """The text with a few pieces removed, repeated, moved or replaced by junk."""
    for _ in range(rng.randint(1, 4)):
        begin = rng.randrange(len(text) + 1)
        end = min(len(text), begin + rng.randrange(12))
        piece = rng.choice([*JUNK, "", text[begin:end] * 2, text[end : end + 9]])
        text = text[:begin] + piece + text[end:]
    return text.encode("utf-8", "surrogatepass")


RECORDS = [{"prompt": f"q {i}", "answer": f"a, {i}", "n": i} for i in range(5)]
FILES = {
    "a.jsonl": "\n".join(json.dumps(record) for record in RECORDS),
    "a.json": json.dumps(RECORDS, indent=1),
    "b.json": json.dumps({"examples": RECORDS}),
    "a.csv": "prompt,answer,n\n" + "".join(f'q {i},"a, {i}",{i}\n' for i in range(5)),
    "a.txt": "one paragraph\n\nanother\n\nand a third\n",
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("packed", [False, True])
def test_damaged_files_of_records(tmp_path, name, packed):
    rng = random.Random(f"{name} {packed}")
    path = tmp_path / (f"{name}.gz" if packed else name)
    source = TypeAdapter(Source).validate_python({"kind": "files", "folder": str(tmp_path)})
    for _ in range(ROUNDS):
        content = damaged(FILES[name], rng)
        if packed:
            content = bytearray(gzip.compress(content))
            if rng.random() < 0.5:
                content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
        try:
            examples = list(read_source(source, path.name))
        except LetheError as error:
            assert path.name in str(error)
            continue
        for example in examples:
            example.storable().digest()


def test_records_of_random_values(tmp_path):
    rng = random.Random(0)
    settings = {"kind": "files", "folder": str(tmp_path), "format": None}
    for number in range(ROUNDS):
        record = {}
        for field in ("prompt", "answer", "text", "messages", "instruction", "response"):
            if rng.random() < 0.7:
                record[field] = rng.choice(VALUES[:7] + VALUES[8:])
        if rng.random() < 0.3:
            turn = {"role": rng.choice(["user", "assistant", 3]), "content": rng.choice(VALUES)}
            record["messages"] = [turn if not isinstance(turn["content"], bytes) else 0] * 2
        path = tmp_path / f"{number}.jsonl"
        path.write_text(json.dumps(record))
        for format in ("fields", "messages", "dolly"):
            source = TypeAdapter(Source).validate_python(settings | {"format": format})
            try:
                examples = list(read_source(source, path.name))
            except LetheError as error:
                assert path.name in str(error)
                continue
            assert not any(
                part and part[0] in "[{" or part in ("None", "True", "nan")
                for example in examples
                for part in (example.prompt, example.answer, example.text)
            )


def test_parquet_files_of_random_columns(tmp_path):
    columns = [["a", "b"], [1, None], [0.5, float("nan")], [b"x", b"y"], [["a"], []], [True, False]]
    path = tmp_path / "a.parquet"
    source = TypeAdapter(Source).validate_python({"kind": "files", "folder": str(tmp_path)})
    for prompt in columns:
        for answer in columns:
            pq.write_table(pa.table({"prompt": prompt, "answer": answer}), path)
            try:
                examples = list(read_source(source, path.name))
            except LetheError as error:
                assert "a.parquet, row " in str(error)
                continue
            assert prompt in columns[:2] and answer in columns[:2]
            assert len(examples) == 2


def flipped(content, rng):
    """The bytes with up to three bits changed; one in five is cut short as well."""
    content = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return content[: rng.randrange(len(content))] if rng.random() < 0.2 else content


def test_damaged_tables(tmp_path):
    rng = random.Random(0)
    records = [{"prompt": f"q {i}", "answer": f"é {i}"} for i in range(99)]
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "a.parquet")
    write_upstream(tmp_path / "u.parquet", tiny.upstream(99))
    with pa.output_stream(str(tmp_path / "a.jsonl.zst"), compression="zstd") as stream:
        stream.write(FILES["a.jsonl"].encode())
    source = TypeAdapter(Source).validate_python({"kind": "files", "folder": str(tmp_path)})
    readers = {
        "a.parquet": lambda path: list(read_source(source, path.name)),
        "a.jsonl.zst": lambda path: list(read_source(source, path.name)),
        "u.parquet": lambda path: [list(read_upstream(path)), read_examples(path)],
    }
    for name, read in readers.items():
        path = tmp_path / name
        content = path.read_bytes()
        for _ in range(ROUNDS):
            path.write_bytes(flipped(content, rng))
            try:
                read(path)
            except LetheError as error:
                assert name in str(error)


@pytest.mark.parametrize("shipped", ["config.yaml", "experiments/own-matrix.yaml"])
def test_damaged_experiments(tmp_path, shipped):
    rng = random.Random(shipped)
    text = (ROOT / shipped).read_text("utf-8")
    table = (ROOT / "experiments/own-matrix/tasks.csv").read_text("utf-8")
    path = tmp_path / "e.yaml"
    for number in range(ROUNDS):
        path.write_bytes(damaged(text, rng))
        (tmp_path / "tasks.csv").write_bytes(damaged(table, rng))
        try:
            config = read_yaml(path) if number % 2 else yaml.safe_load(path.read_bytes())
        except LetheError as error:
            assert "e.yaml" in str(error)
            continue
        except (yaml.YAMLError, ValueError, RecursionError, TypeError):
            # Snakemake's own reader refused the file.
            continue
        if isinstance(config, dict):
            config["tasks"] = "tasks.csv"
        try:
            load_experiment(config, tmp_path, [path])
        except LetheError as error:
            assert "nothing was started" in str(error)


CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def test_damaged_chat_templates():
    rng = random.Random(0)
    tokenizer = tiny.tokenizer()
    tokenizer.name_or_path = "some/model"
    refused = 0
    for _ in range(ROUNDS):
        tokenizer.chat_template = damaged(CHATML, rng).decode("utf-8", "replace")
        try:
            (tokens,) = tokenise(tokenizer, [Example("How many?", "Seven")], 500).examples
        except LetheError as error:
            assert "model 'some/model': " in str(error)
            assert "chat_template" in str(error)
            refused += 1
            continue
        assert "Seven" in tokenizer.decode(tokens.ids[tokens.start :])
    assert 0 < refused < ROUNDS
