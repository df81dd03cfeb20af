import json
import zipfile
from itertools import islice

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import TypeAdapter

from lethe.config.data_settings import Source
from lethe.data.examples import Example
from lethe.data.sources import read_source
from lethe.errors import LetheError


def source(**settings):
    return TypeAdapter(Source).validate_python(settings)


def local(folder, **settings):
    return source(kind="files", folder=str(folder), **settings)


PAIRS = [Example("1 + 1", "2"), Example("2 + 2", "4")]


def test_jsonl_csv_and_parquet_give_the_same_read_source(tmp_path):
    records = [{"question": e.prompt, "reply": e.answer} for e in PAIRS]
    lines = [json.dumps(record) for record in records]
    (tmp_path / "a.jsonl").write_text("\n".join([lines[0], "", lines[1]]) + "\n")
    (tmp_path / "a.csv").write_text("question,reply\n1 + 1,2\n2 + 2,4\n")
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "a.parquet")
    data_source = local(tmp_path, prompt="{question}", answer="{reply}")
    for kind in ("jsonl", "csv", "parquet"):
        assert list(read_source(data_source, f"a.{kind}")) == PAIRS


def test_fields_are_put_into_the_templates(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"context": "C", "q 1": "Q", "n": 3, "none": null}\n')
    data_source = local(tmp_path, prompt='{context}: {q 1} as {"n": 1}?', answer="{n}{none}")
    assert list(read_source(data_source, "a.jsonl")) == [Example('C: Q as {"n": 1}?', "3")]


@pytest.mark.parametrize("name", ["Question?", "Answer (short)", "it's", "a+b", "Frage & mehr, Ü"])
def test_a_field_may_have_any_name(tmp_path, name):
    (tmp_path / "a.jsonl").write_text(json.dumps({name: "value", "x": "y"}) + "\n")
    data_source = local(tmp_path, prompt=f"{{{name}}}!", answer=f"{{{name}}}")
    assert list(read_source(data_source, "a.jsonl")) == [Example("value!", "value")]
    with pytest.raises(LetheError, match="no field 'other[?]'"):
        list(read_source(local(tmp_path, prompt="{other?}", answer="{x}"), "a.jsonl"))


def test_a_template_reaches_into_no_attribute(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "P", "answer": "{prompt}"}\n')
    data_source = local(tmp_path, prompt="{prompt}")
    assert list(read_source(data_source, "a.jsonl")) == [Example("P", "{prompt}")]
    with pytest.raises(LetheError, match=r"no field 'prompt\.__class__'"):
        list(read_source(local(tmp_path, prompt="{prompt.__class__}"), "a.jsonl"))


def test_a_text_file_is_a_paragraph_a_record(tmp_path):
    (tmp_path / "a.txt").write_text("One\nstill one.\n\n \n\nTwo.\n")
    result = list(read_source(local(tmp_path, text="{text}"), "a.txt"))
    assert result == [Example(text="One\nstill one."), Example(text="Two.")]


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_the_mark_that_spreadsheets_write_first_is_no_part_of_a_field(tmp_path, kind):
    content = {"jsonl": '{"prompt": "é", "answer": "b"}\n', "csv": "prompt,answer\né,b\n"}[kind]
    (tmp_path / f"a.{kind}").write_text(content, "utf-8-sig")
    assert list(read_source(local(tmp_path), f"a.{kind}")) == [Example("é", "b")]


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("a.jsonl", b'{"prompt": "x", "answer": "y"}\n{"prompt": \n', "line 2: not JSON"),
        ("a.jsonl", b"[1, 2]\n", r"line 1: an object is wanted: '\[1, 2\]"),
        ("a.jsonl", b'{"prompt": "x"}\n', r"no field 'answer'.*seen: \['prompt'\]"),
        ("a.csv", b"prompt;answer\nx;y\n", r"no field 'prompt'.*seen: \['prompt;answer'\]"),
        ("a.csv", "prompt,answer\né,y\n".encode("latin-1"), "is not UTF-8"),
        ("a.txt", b"\xff\xfe", "is not UTF-8"),
        ("a.parquet", b"PAR1 but not really", "is not readable as parquet"),
        ("a.xlsx", b"", r"ends with '\.xlsx'; known: \.jsonl, \.json, \.csv"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_name(tmp_path, name, content, part):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(LetheError, match=part) as caught:
        list(read_source(local(tmp_path), name))
    assert name in str(caught.value)


VALUES = [
    ("text", "text"),
    (7, "7"),
    # Larger than any float.
    (10**400, "1" + 400 * "0"),
    (2.5, "2.5"),
    (1e-7, "1e-07"),
    ({"text": "inside"}, "inside"),
    (None, ""),
]


@pytest.mark.parametrize(("value", "text"), VALUES)
def test_text_numbers_and_objects_of_one_text_are_text(tmp_path, value, text):
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": "P", "answer": value}))
    assert list(read_source(local(tmp_path), "a.jsonl")) == [Example("P", text)]


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (["yes", "no"], r"a list.*\{field\.0\}"),
        ([], "a list"),
        ({"text": ["yes"], "start": [0]}, r"an object.*it has: text, start"),
        ({"text": 3}, "an object"),
        ({}, "an object"),
        (True, "a truth value"),
        (float("nan"), "nan, which is no number"),
        (float("inf"), "inf, which is no number"),
    ],
)
@pytest.mark.parametrize("field", ["prompt", "answer", "text"])
def test_other_values_are_refused_with_file_line_field_and_type(tmp_path, value, kind, field):
    record = {"prompt": "P", "answer": "A", field: value}
    good = {"prompt": "P", "answer": "A", "text": "T"}
    (tmp_path / "a.jsonl").write_text(f"{json.dumps(good)}\n{json.dumps(record)}\n")
    settings = {"text": "{text}"} if field == "text" else {}
    with pytest.raises(LetheError, match=rf"field '{field}' holds {kind}.*a\.jsonl, line 2"):
        list(read_source(local(tmp_path, **settings), "a.jsonl"))


def test_parquet_values_that_are_not_text_are_refused_with_their_row(tmp_path):
    table = pa.table({"prompt": ["P", "Q"], "answer": [b"1", b"2"]})
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(LetheError, match=r"field 'answer' holds bytes.*a\.parquet, row 1"):
        list(read_source(local(tmp_path), "a.parquet"))
    numbers = pa.table({"prompt": ["P", "Q"], "answer": [1.5, float("nan")]})
    pq.write_table(numbers, tmp_path / "b.parquet")
    with pytest.raises(LetheError, match=r"field 'answer' holds nan.*b\.parquet, row 2"):
        list(read_source(local(tmp_path), "b.parquet"))


def test_one_of_several_accepted_answers_is_named_by_its_position(tmp_path):
    record = {"prompt": "P", "a.b": "dots", "answers": {"text": ["yes", "yeah"], "start": [3, 3]}}
    (tmp_path / "a.jsonl").write_text(json.dumps(record))
    data_source = local(tmp_path, answer="{answers.text.1} {answers.start.0} {a.b}")
    assert list(read_source(data_source, "a.jsonl")) == [Example("P", "yeah 3 dots")]
    for missing in ("answers.text.2", "answers.other", "answers.text.x"):
        with pytest.raises(LetheError, match=f"no field '{missing}'"):
            list(read_source(local(tmp_path, answer=f"{{{missing}}}"), "a.jsonl"))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(LetheError, match=r"no such file: .*gone\.csv"):
        read_source(local(tmp_path), "gone.csv")


@pytest.mark.parametrize(
    ("where", "cause"),
    [("x" * 999, "File name too long"), ("/all*", "Non-relative"), ("**x", "Invalid pattern")],
)
def test_a_name_that_is_no_file_and_no_pattern_is_named(tmp_path, where, cause):
    with pytest.raises(LetheError, match=f"no such file: .*{cause}"):
        read_source(local(tmp_path), where)


@pytest.fixture
def saved(tmp_path):
    import datasets

    rows = {"instruction": ["a", "b", "c"], "kind": ["x", "y", "x"], "response": ["1", "2", "3"]}
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "one")
    parts = {"train": datasets.Dataset.from_dict(rows)}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "parts")
    return tmp_path


def dataset(path, **settings):
    fields = {"prompt": "{instruction}", "answer": "{response}"}
    return source(**{"kind": "saved", "path": str(path)} | fields | settings)


@pytest.mark.parametrize("name", ["one", "parts"])
def test_a_saved_dataset_gives_the_records_whose_field_is_asked_for(saved, name):
    result = list(read_source(dataset(saved / name, by="kind"), "x"))
    assert result == [Example("a", "1"), Example("c", "3")]
    assert len(list(read_source(dataset(saved / name), ""))) == 3


@pytest.mark.parametrize(
    ("name", "settings", "part"),
    [
        ("one", {"by": "kind"}, r"no record with kind = 'z'; seen: \['x', 'y'\]"),
        ("one", {"by": "sort"}, r"no field 'sort'; seen: \['instruction', 'kind', 'response'\]"),
        ("parts", {"split": "test"}, r"no split 'test'; seen: \['train'\]"),
        ("gone", {}, "gone: cannot be loaded"),
    ],
)
def test_what_a_dataset_lacks_is_said_with_what_it_has(saved, name, settings, part):
    with pytest.raises(LetheError, match=part):
        list(read_source(dataset(saved / name, **settings), "z"))


def test_records_cannot_be_selected_by_a_field_of_lists(tmp_path):
    import datasets

    rows = {"instruction": ["a"], "labels": [["x"]], "response": ["1"]}
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "lists")
    with pytest.raises(LetheError, match=r"lists: field 'labels' of record 1 .*type list"):
        list(read_source(dataset(tmp_path / "lists", by="labels"), "x"))


def test_numbers_of_few_bits_in_a_dataset_are_written_as_they_were_meant(tmp_path):
    import datasets

    columns = {"x": [0.1, None, 2.0], "y": [[0.1], [], [0.3]], "kind": ["a", "b", "a"]}
    features = {"x": datasets.Value("float32"), "kind": datasets.Value("string")}
    features["y"] = datasets.Sequence(datasets.Value("float16"))
    rows = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    rows.save_to_disk(tmp_path / "few")
    few = dataset(tmp_path / "few", text="{x} {y.0}", by="kind")
    assert [example.text for example in read_source(few, "a")] == [
        "0.1 0.099975586",
        "2.0 0.30004883",
    ]


def test_a_hub_dataset_is_loaded_at_its_revision(saved, monkeypatch):
    import datasets

    request = {}

    def load_dataset(path, name, **options):
        request.update(options, path=path, name=name)
        return datasets.load_from_disk(saved / "one")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    data_source = dataset("org/data", kind="hub", name="en", split="dev", revision="abc", by="kind")
    assert list(read_source(data_source, "y")) == [Example("b", "2")]
    assert request == {"path": "org/data", "name": "en", "split": "dev", "revision": "abc"}


def test_a_hub_dataset_that_cannot_be_had_is_named(monkeypatch):
    import datasets

    def load_dataset(*_, **__):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    message = r"org/data: cannot be loaded: ConnectionError: no network"
    with pytest.raises(LetheError, match=message):
        list(read_source(dataset("org/data", kind="hub"), ""))


def test_the_standard_library_is_a_module_a_document():
    result = list(read_source(source(kind="stdlib"), "json"))
    assert any("JSONDecoder" in example.text for example in result)
    assert result == list(read_source(source(kind="stdlib"), "json"))
    # Modules of the library's own folder and of packages in it.
    assert len(list(islice(read_source(source(kind="stdlib"), "all"), 60))) == 60


def test_a_package_that_python_lacks_is_named():
    with pytest.raises(LetheError, match="no package 'jason'"):
        list(read_source(source(kind="stdlib"), "jason"))


def test_a_bigbench_task_is_a_pair_or_upstream_text(tmp_path):
    path = tmp_path / "b.zip"
    with zipfile.ZipFile(path, "w") as members:
        content = json.dumps({"examples": [{"input": "x", "target": "y"}]})
        members.writestr("t/task.json", content)
    data_source = source(kind="bigbench")
    assert list(read_source(data_source, "t", archive=path)) == [Example("Q: x\nA:", "y")]
    as_text = read_source(data_source, "t", archive=path, upstream=True)
    assert list(as_text) == [Example(text="Q: x\nA:\ny")]


def test_solved_examples_of_a_bigbench_task_stand_before_the_others(tmp_path):
    path = tmp_path / "b.zip"
    with zipfile.ZipFile(path, "w") as members:
        records = [{"input": str(i), "target": str(i + 1)} for i in range(4)]
        members.writestr("t/task.json", json.dumps({"examples": records}))
    data_source = source(kind="bigbench", shots=2, upstream_as="pairs")
    solved = "Q: 0\nA:\n1\n\nQ: 1\nA:\n2\n\n"
    expected = [Example(f"{solved}Q: {i}\nA:", str(i + 1)) for i in (2, 3)]
    assert list(read_source(data_source, "t", archive=path)) == expected
    assert list(read_source(data_source, "t", archive=path, upstream=True)) == expected
    joined = source(kind="bigbench", shots=2)
    texts = [example.text for example in read_source(joined, "t", archive=path, upstream=True)]
    assert texts == [f"{solved}Q: {i}\nA:\n{i + 1}" for i in (2, 3)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("state.json", "{}"),
        ("state.json", "no JSON"),
        ("dataset_info.json", "[]"),
        ("dataset_info.json", '{"features": {"a": {"_type": "NoSuchType"}}}'),
        ("data-00000-of-00001.arrow", ""),
        ("data-00000-of-00001.arrow", "no table"),
    ],
)
def test_a_damaged_dataset_is_named(tmp_path, name, content):
    import datasets

    folder = tmp_path / "saved"
    datasets.Dataset.from_list([{"prompt": "q", "answer": "a"}]).save_to_disk(folder)
    (folder / name).write_text(content)
    source = TypeAdapter(Source).validate_python({"kind": "saved", "path": str(folder)})
    with pytest.raises(LetheError, match=r"dataset .*saved: cannot be loaded: \w+: ") as caught:
        list(read_source(source, ""))
    assert "\n" not in str(caught.value)
