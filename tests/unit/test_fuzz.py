"""Damaged and random input ends in a right result or in a LetheError, never in another error.

hypothesis makes the input. It is derandomised, so that every run tries the same input. All tests
together take about a minute.
"""

import csv
import gzip
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from helpers import tiny
from helpers.experiment import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from lethe.completion.predictor import Predictor
from lethe.config.data_settings import Source
from lethe.config.loading import load_experiment
from lethe.config.task_table import read_task_table
from lethe.config.yaml_file import read_yaml
from lethe.data import chat
from lethe.data.examples import Example, read_examples, read_upstream, write_upstream
from lethe.data.sources import read_source
from lethe.data.tokens import tokenise
from lethe.errors import LetheError
from lethe.matrix import rows
from lethe.matrix.forgetting_matrix import Matrix, read_matrix, write_matrix
from lethe.matrix.own_matrix import read_named_matrix, read_own_matrix
from lethe.matrix.prediction_files import read_prediction_file, write_prediction_file
from lethe.matrix.token_files import TokenLosses, read_token_file, write_token_file
from lethe.workflow import ResultFiles


def fuzz(examples):
    """Runs a test on this many inputs, the same ones each time."""
    return settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


# ---- what is damaged, and how

JUNK = ['"', ",", "\n", "\r\n", "{", "}", "[", "]", ":", "\ufeff", "\x00", "é", "\ud83d", "*a"]
JUNK += ["&a", "null", "NaN", "-", "- ", "  ", "\t", "{{", "}}", "{%", "%}", "1e999", "'", "#"]
JUNK += ["|", "!!x", "\\", "\u2028", "<<", "?", "9" * 400, "[" * 2000, "true", "0x1", "1_0"]
EDITS = st.lists(
    st.tuples(st.floats(0, 1), st.integers(0, 12), st.sampled_from(["", "twice", *JUNK])),
    min_size=1,
    max_size=4,
)


def damaged(text, edits):
    """The text with a few pieces removed, repeated or replaced by junk, in UTF-8."""
    for where, length, junk in edits:
        begin = int(where * len(text))
        piece = text[begin : begin + length]
        text = text[:begin] + (piece * 2 if junk == "twice" else junk) + text[begin + length :]
    return text.encode("utf-8", "surrogatepass")


FLIPS = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 7)), min_size=1, max_size=3)


def flipped(content, flips, share=1.0):
    """The bytes with a few bits changed, cut to a share of their length."""
    content = bytearray(content)
    for where, bit in flips:
        content[min(int(where * len(content)), len(content) - 1)] ^= 1 << bit
    return bytes(content[: int(share * len(content))])


SHARES = st.one_of(st.just(1.0), st.floats(0, 1))
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["text", "{prompt}", "", " ", "1", "2024-01-01", "../x", "x" * 300]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["text", "role", "content", "a", "0"]), inner, max_size=3),
    ),
    max_leaves=8,
)

# ---- records

RECORDS = [{"prompt": f"q {i}", "answer": f"a, {i}", "n": i} for i in range(5)]
FILES = {
    "a.jsonl": "\n".join(json.dumps(record) for record in RECORDS),
    "a.json": json.dumps(RECORDS, indent=1),
    "b.json": json.dumps({"examples": RECORDS}),
    "a.csv": "prompt,answer,n\n" + "".join(f'q {i},"a, {i}",{i}\n' for i in range(5)),
    "a.txt": "one paragraph\n\nanother\n\nand a third\n",
}
ENDINGS = (".jsonl", ".json", ".csv", ".txt", ".parquet", ".jsonl.gz", ".csv.zst", ".gz", ".npy")


def source_in(folder, **changes):
    """A source of files in a folder."""
    content = {"kind": "files", "folder": str(folder), **changes}
    return TypeAdapter(Source).validate_python(content)


def pack(content, ending):
    """The bytes compressed as a file with this ending."""
    if ending == ".gz":
        return gzip.compress(content, mtime=0)
    if ending == ".zst":
        stream = pa.BufferOutputStream()
        with pa.CompressedOutputStream(stream, "zstd") as packed:
            packed.write(content)
        return stream.getvalue().to_pybytes()
    return content


def check_records(source, path):
    """Reads all examples; those that are read can be stored, and errors name the file."""
    try:
        examples = list(read_source(source, path.name))
    except LetheError as error:
        assert path.name in str(error)
        return []
    for example in examples:
        example.storable().digest()
    return examples


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
def test_damaged_files_of_records(tmp_path, name, ending):
    path = tmp_path / (name + ending)
    source = source_in(tmp_path)

    @fuzz(60)
    @given(EDITS, st.one_of(st.just([]), FLIPS), SHARES)
    def check(edits, flips, share):
        content = pack(damaged(FILES[name], edits), ending)
        path.write_bytes(flipped(content, flips, share) if ending else content)
        check_records(source, path)

    check()


@pytest.mark.parametrize("ending", ENDINGS)
def test_files_of_any_bytes(tmp_path, ending):
    path = tmp_path / f"a{ending}"
    source = source_in(tmp_path)

    @fuzz(40)
    @given(st.one_of(st.binary(max_size=60), st.text(max_size=40).map(str.encode)))
    def check(content):
        path.write_bytes(content)
        check_records(source, path)

    check()


FIELDS = ("prompt", "answer", "text", "messages", "instruction", "context", "response", "input")
TURNS = st.lists(
    st.one_of(
        st.fixed_dictionaries(
            {"role": st.sampled_from(["user", "assistant", "system", 3]), "content": VALUES}
        ),
        VALUES,
    ),
    max_size=3,
)


@pytest.mark.parametrize("format", ["fields", "messages", "dolly"])
def test_records_of_any_values(tmp_path, format):
    path = tmp_path / "a.jsonl"
    source = source_in(tmp_path, format=format)

    @fuzz(200)
    @given(st.dictionaries(st.sampled_from(FIELDS), st.one_of(VALUES, TURNS), max_size=5))
    def check(record):
        path.write_text(json.dumps(record), "utf-8")
        texts = [value for value in record.values() if isinstance(value, str)]
        for example in check_records(source, path):
            for part in (example.prompt, example.answer, example.text):
                # Nothing but text may look like a Python value.
                if part and part[0] in "[{" or part in ("None", "True", "False", "nan", "inf"):
                    assert any(part in text for text in _texts(record)), (part, texts)

    check()


def _texts(value):
    """All texts in a value, however deep."""
    if isinstance(value, str):
        return [value]
    parts = value.values() if isinstance(value, dict) else value
    texts = []
    if isinstance(value, dict | list):
        for part in parts:
            texts += _texts(part)
    return texts


COLUMNS = {
    "text": ["a", "b"],
    "gaps": [1, None],
    "no number": [0.5, float("nan")],
    "bytes": [b"x", b"y"],
    "lists": [["a"], []],
    "truth": [True, False],
    "objects": [{"a": 1}, {"a": 2}],
}


@pytest.mark.parametrize("prompt", COLUMNS)
@pytest.mark.parametrize("answer", COLUMNS)
def test_parquet_files_of_all_kinds_of_columns(tmp_path, prompt, answer):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"prompt": COLUMNS[prompt], "answer": COLUMNS[answer]}), path)
    readable = {"text", "gaps"}
    examples = check_records(source_in(tmp_path), path)
    assert len(examples) == (2 if {prompt, answer} <= readable else 0)


# ---- files that lethe itself writes


def write_row(path):
    losses = np.arange(9, dtype=np.float32)
    ids = [f"e{i}" for i in range(9)]
    counts = np.ones(9, dtype=np.int64)
    rows.write_row(path, rows.Row(ids, losses, losses + 1, counts, {"a": {}}, {"task": "t"}))


def write_z(path):
    values = np.arange(27, dtype=np.float32).reshape(3, 9)
    write_matrix(path, Matrix(values, ["a", "b", "c"], [f"e{i}" for i in range(9)]))


def write_predictor(path):
    values = np.random.default_rng(0).normal(size=(5, 9)).astype(np.float32)
    ids = [f"e{i}" for i in range(9)]
    probes = [Example(text="some text")] * 2
    Predictor(values, ids, np.array(["x"] * 9), np.arange(2), probes, 32).save(path)


def write_several_rows(path):
    write_row(path)
    row = rows.read_row(path)
    rows.write_rows(path, [row, row])


def write_tokens(path):
    losses = np.array([np.nan, 1, 2], dtype=np.float16)
    examples = [TokenLosses(f"e{i}", ["a", " b", ""], losses, losses + 1) for i in range(9)]
    write_token_file(path, examples)


def write_changes(path):
    measures = {name: np.arange(9, dtype=np.float32) for name in ("kl", "top1_changed")}
    write_prediction_file(path, [f"e{i}" for i in range(9)], measures)


WRITERS = {
    "tokens": (write_tokens, read_token_file),
    "changes": (write_changes, read_prediction_file),
    "row": (write_row, rows.read_row),
    "rows": (write_several_rows, rows.read_rows),
    "Z": (write_z, read_matrix),
    "predictor": (write_predictor, Predictor.load),
    "upstream": (lambda path: write_upstream(path, tiny.upstream(9)), read_upstream),
    "examples": (lambda path: write_upstream(path, tiny.upstream(9)), read_examples),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_damaged_files_of_lethe(tmp_path, kind):
    write, read = WRITERS[kind]
    path = tmp_path / "f.parquet"
    write(path)
    content = path.read_bytes()

    @fuzz(100)
    @given(FLIPS, SHARES)
    def check(flips, share):
        path.write_bytes(flipped(content, flips, share))
        try:
            values = read(path)
            if kind in ("upstream", "examples"):
                list(values)
        except LetheError as error:
            assert "f.parquet" in str(error)

    check()


# ---- matrices

TASKS = ["a", "b", "c"]
LAYOUTS = st.sampled_from(["tasks_in_rows", "tasks_in_columns"])
NUMBERS = st.floats(-100, 100, width=32)


def check_matrix(path, tasks, layout, **options):
    """Reads a matrix; if it is read it has the right shape, and errors name the file."""
    try:
        matrix = read_own_matrix(path, tasks, layout, **options)
    except LetheError as error:
        assert path.name in str(error) or "matrix.examples" in str(error)
        return None
    assert matrix.values.shape == (len(tasks), len(matrix.example_ids))
    assert matrix.values.dtype == np.float32
    assert len(set(matrix.example_ids)) == len(matrix.example_ids) > 0
    return matrix


def as_csv(values, layout, *, header=True):
    """A matrix (M, N) as CSV in a layout."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    ids = [f"e{i}" for i in range(values.shape[1])]
    if layout == "tasks_in_rows":
        writer.writerow(["task", *ids])
        for task, line in zip(TASKS, values, strict=True):
            writer.writerow([task, *line.tolist()])
    else:
        writer.writerow(["example_id", *TASKS])
        for example, line in zip(ids, values.T, strict=True):
            writer.writerow([example, *line.tolist()])
    return stream.getvalue()


def test_matrices_come_back_from_csv_and_parquet(tmp_path):
    @fuzz(60)
    @given(st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS), min_size=1, max_size=9), LAYOUTS)
    def check(lines, layout):
        values = np.array(lines, dtype=np.float32).T
        path = tmp_path / "z.csv"
        path.write_text(as_csv(values, layout))
        matrix = check_matrix(path, TASKS, layout)
        np.testing.assert_array_equal(matrix.values, values)
        pq.write_table(pa.csv.read_csv(path), tmp_path / "z.parquet")
        matrix = check_matrix(tmp_path / "z.parquet", TASKS, layout)
        np.testing.assert_array_equal(matrix.values, values)

    check()


@pytest.mark.parametrize("layout", ["tasks_in_rows", "tasks_in_columns"])
def test_damaged_matrices_in_csv(tmp_path, layout):
    text = as_csv(np.arange(12, dtype=np.float32).reshape(3, 4) / 7, layout)
    path = tmp_path / "z.csv"

    @fuzz(200)
    @given(EDITS, LAYOUTS)
    def check(edits, stated):
        path.write_bytes(damaged(text, edits))
        check_matrix(path, TASKS, stated)

    check()


@pytest.mark.parametrize("ending", [".npy", ".parquet"])
def test_damaged_binary_matrices(tmp_path, ending):
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    path = tmp_path / f"z{ending}"
    if ending == ".npy":
        np.save(path, values)
    else:
        columns = {"task": TASKS} | {f"e{i}": values[:, i] for i in range(4)}
        pq.write_table(pa.table(columns), path)
    content = path.read_bytes()

    @fuzz(150)
    @given(FLIPS, SHARES, LAYOUTS)
    def check(flips, share, layout):
        path.write_bytes(flipped(content, flips, share))
        check_matrix(path, TASKS, layout)

    check()


ARRAYS = st.one_of(
    st.lists(st.lists(NUMBERS, max_size=3), max_size=3),
    st.lists(st.text(max_size=3), max_size=4),
    st.lists(st.booleans(), max_size=4),
    st.lists(st.complex_numbers(), max_size=3),
    st.integers(),
)


def test_arrays_of_any_shape_and_type(tmp_path):
    path = tmp_path / "z.npy"

    @fuzz(100)
    @given(ARRAYS, LAYOUTS)
    def check(content, layout):
        try:
            array = np.array(content)
        except ValueError:
            return
        np.save(path, array)
        check_matrix(path, TASKS, layout)

    check()


CELLS = st.one_of(NUMBERS, st.none(), st.integers(), st.text(max_size=4), st.booleans(), st.dates())


def test_tables_of_any_columns(tmp_path):
    path = tmp_path / "z.parquet"

    @fuzz(150)
    @given(
        st.dictionaries(
            st.sampled_from([*TASKS, "task", "example_id", "", "index", "__index_level_0__", "x"]),
            st.lists(CELLS, min_size=3, max_size=3),
            min_size=1,
        ),
        LAYOUTS,
    )
    def check(columns, layout):
        try:
            table = pa.table(columns)
        except (pa.ArrowException, TypeError, OverflowError):
            return
        pq.write_table(table, path)
        check_matrix(path, TASKS, layout)

    check()


RANGES = st.dictionaries(
    st.sampled_from(["x", "y"]),
    st.one_of(
        VALUES,
        st.fixed_dictionaries(
            {
                "start": st.one_of(st.integers(-1, 3), VALUES),
                "stop": st.one_of(st.integers(0, 4), VALUES),
                "tasks": st.one_of(st.lists(st.sampled_from(TASKS), max_size=3), VALUES),
            }
        ),
    ),
)


def test_names_of_rows_that_are_anything(tmp_path):
    path = tmp_path / "z.npy"
    meta = tmp_path / "z.meta"
    np.save(path, np.zeros((3, 4), dtype=np.float32))

    @fuzz(150)
    @given(st.one_of(RANGES, VALUES))
    def check(content):
        meta.write_text(json.dumps(content), "utf-8")
        try:
            matrix = read_named_matrix(path, meta, TASKS)
        except LetheError as error:
            assert "z.meta" in str(error) or "z.npy" in str(error)
        else:
            assert matrix.values.shape == (3, 4)

    check()


def test_names_of_examples_that_are_anything(tmp_path):
    path = tmp_path / "z.npy"
    np.save(path, np.zeros((3, 4), dtype=np.float32))
    names = tmp_path / "names.txt"

    @fuzz(100)
    @given(st.one_of(st.binary(max_size=30), EDITS.map(lambda e: damaged("e0\ne1\ne2\ne3", e))))
    def check(content):
        names.write_bytes(content)
        try:
            matrix = read_own_matrix(path, TASKS, "tasks_in_rows", names)
        except LetheError as error:
            assert "names.txt" in str(error) or "z.npy" in str(error)
        else:
            assert len(matrix.example_ids) == 4

    check()


# ---- experiments


def check_experiment(config, folder, files=()):
    """Loads an experiment; if it loads, its files can be listed."""
    try:
        loaded = load_experiment(config, folder, files)
    except LetheError as error:
        assert "nothing was started" in str(error)
        return
    assert ResultFiles(loaded, "results/x").targets()


@pytest.mark.parametrize("shipped", ["config.yaml", "experiments/own-matrix.yaml"])
@pytest.mark.parametrize("as_snakemake", [False, True])
def test_damaged_experiments(tmp_path, shipped, as_snakemake):
    text = (ROOT / shipped).read_text("utf-8")
    table = (ROOT / "experiments/own-matrix/tasks.csv").read_text("utf-8")
    path = tmp_path / "e.yaml"
    (tmp_path / "tasks.csv").write_text(table, "utf-8")

    @fuzz(40)
    @given(EDITS)
    def check(edits):
        path.write_bytes(damaged(text, edits))
        try:
            config = yaml.safe_load(path.read_bytes()) if as_snakemake else read_yaml(path)
        except LetheError as error:
            assert "e.yaml" in str(error)
            return
        except (yaml.YAMLError, ValueError, RecursionError, TypeError):
            # Snakemake's own reader refused the file.
            return
        if isinstance(config, dict):
            config["tasks"] = "tasks.csv"
        check_experiment(config, tmp_path, [path])

    check()


def leaves(value, path=()):
    """The path of every value in nested settings."""
    paths = [path] if path else []
    if isinstance(value, dict):
        for key, part in value.items():
            paths += leaves(part, (*path, key))
    return paths


def replaced(config, path, value):
    """The settings with another value at a path."""
    key, *rest = path
    return {**config, key: replaced(config[key], rest, value) if rest else value}


@pytest.mark.parametrize("shipped", ["config.yaml", "experiments/own-matrix.yaml"])
def test_experiments_with_any_value_at_any_key(shipped):
    config = yaml.safe_load((ROOT / shipped).read_text("utf-8"))

    @fuzz(150)
    @given(st.sampled_from(leaves(config)), VALUES)
    def check(path, value):
        check_experiment(replaced(config, path, value), ROOT)

    check()


def test_damaged_task_tables(tmp_path):
    text = (ROOT / "experiments/own-matrix/tasks.csv").read_text("utf-8")
    path = tmp_path / "tasks.csv"

    @fuzz(200)
    @given(EDITS)
    def check(edits):
        path.write_bytes(damaged(text, edits))
        tasks, problems = read_task_table(path, sources=False)
        assert problems or tasks
        for problem in problems:
            assert "tasks.csv" in problem

    check()


# ---- templates

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PIECES = [
    "{% for m in messages %}",
    "{{ m.role }}",
    "{{ m['content'] }}",
    "{% endfor %}",
    "{{ messages[0].content }}",
    "{{ messages[5].content }}",
    "{% if add_generation_prompt %}",
    "{% endif %}",
    "{{ raise_exception('no') }}",
    "{{ 1 / 0 }}",
    "{{ messages.__class__.__mro__ }}",
    "{{ eos_token }}",
    "{% for i in range(10 ** 9) %}x{% endfor %}",
    "{{ 'x' * 10 ** 7 }}",
    "{% include 'a' %}",
    "{{ undefined.field }}",
    "<think>",
    "</think>",
    "\n",
]


@pytest.fixture
def template_check(monkeypatch):
    """Tokenises a pair with a template: the answer is whole, or the refusal names the model."""
    monkeypatch.setattr(chat, "MOST_SECONDS", 0.2)
    tokenizer = tiny.tokenizer()
    tokenizer.name_or_path = "some/model"

    def check(template):
        tokenizer.chat_template = template
        try:
            (tokens,) = tokenise(tokenizer, [Example("How many?", "Seven")], 500).examples
        except LetheError as error:
            assert "model 'some/model': " in str(error)
            assert "chat_template" in str(error)
            return False
        assert "Seven" in tokenizer.decode(tokens.ids[tokens.start :])
        return True

    return check


def test_damaged_chat_templates(template_check):
    accepted = []

    @fuzz(150)
    @given(EDITS)
    def check(edits):
        accepted.append(template_check(damaged(CHATML, edits).decode("utf-8", "replace")))

    check()
    assert 0 < sum(accepted) < len(accepted)


def test_chat_templates_of_any_pieces(template_check):
    @fuzz(100)
    @given(st.lists(st.sampled_from(PIECES), max_size=7).map("".join))
    def check(template):
        template_check(template)

    check()
