import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lethe.config.data_settings import FileSource
from lethe.data import records, unpacked_size
from lethe.errors import LetheError

LINES = '{"text": "é", "source": "s"}\n\n{"text": "b", "source": "t"}\n'
WANTED = [{"text": "é", "source": "s"}, {"text": "b", "source": "t"}]


def plain(path, content):
    path.write_bytes(content)


def gz(path, content):
    path.write_bytes(gzip.compress(content))


def zst(path, content):
    with pa.output_stream(str(path), compression="zstd") as file:
        file.write(content)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        *[("a.jsonl", plain), ("a.jsonl.gz", gz), ("a.jsonl.zst", zst), ("a.jsonl.zstd", zst)],
        *[("a.json", plain), ("a.json.gz", gz)],
    ],
)
def test_lines_of_json_are_records_whatever_they_are_packed_in(tmp_path, name, write):
    """Dolma's .json.gz and the Pile's .jsonl.zst are an object a line."""
    write(tmp_path / name, LINES.encode())
    assert list(records.read_records(tmp_path / name)) == WANTED


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("wrap", [lambda r: r, lambda r: {"canary": "x", "examples": r}])
def test_a_json_file_is_a_list_or_an_object_with_examples(tmp_path, wrap, indent):
    """As the files of BIG-Bench Hard are."""
    (tmp_path / "a.json").write_text(json.dumps(wrap(WANTED), indent=indent))
    assert list(records.read_records(tmp_path / "a.json")) == WANTED


@pytest.mark.parametrize(("name", "write"), [("a.txt.gz", gz), ("a.jsonl.zst", zst)])
def test_a_file_that_unpacks_without_bound_is_refused(tmp_path, monkeypatch, name, write):
    write(tmp_path / name, b" " * 300_000)
    monkeypatch.setattr(unpacked_size, "UNPACKED_BYTES", 300_000)
    assert list(records.read_records(tmp_path / name)) == []
    monkeypatch.setattr(unpacked_size, "UNPACKED_BYTES", 200_000)
    with pytest.raises(LetheError, match=rf"{name}: unpacks to more than 200,000 bytes"):
        list(records.read_records(tmp_path / name))


def test_folders_that_match_a_pattern_are_no_files(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b.txt").write_text("x")
    assert records.matching_files(tmp_path, "*") == [tmp_path / "b.txt"]
    source = FileSource(kind="files", folder=str(tmp_path))
    assert source.reads("*") == [f"{tmp_path}/b.txt"]


def test_files_that_match_a_pattern_come_in_order_of_their_names(tmp_path):
    for name in ("b.jsonl", "a.jsonl", "c.txt"):
        (tmp_path / name).touch()
    result = [path.name for path in records.matching_files(tmp_path, "*.jsonl")]
    assert result == ["a.jsonl", "b.jsonl"]
    assert records.matching_files(tmp_path, "c.txt") == [tmp_path / "c.txt"]
    for where in ("*.csv", "d.txt"):
        with pytest.raises(LetheError, match="no such file"):
            records.matching_files(tmp_path, where)


@pytest.mark.parametrize(
    ("name", "text", "part"),
    [
        (
            "a.jsonl",
            '{"t": 1}\n{"t": "a", "u": "b", "t": "c"}\n',
            r"line 2: the field\(s\) \['t'\]",
        ),
        ("a.jsonl", '{"m": {"t": "a", "t": "c"}}\n', r"line 1: the field\(s\) \['t'\] stand twice"),
        ("a.json", '[{"t": "a", "t": "c"}]', r"a\.json: the field\(s\) \['t'\] stand twice"),
        ("a.json", '{"t": "a", "t": "c"}\n{"t": "b"}\n', r"line 1: the field\(s\) \['t'\]"),
        ("a.json", '{"examples": [], "examples": [{"t": 1}]}', r"\['examples'\] stand twice"),
    ],
)
def test_a_field_that_stands_twice_is_refused(tmp_path, name, text, part):
    """JSON itself would keep the last one without a word."""
    (tmp_path / name).write_text(text)
    with pytest.raises(LetheError, match=part):
        list(records.read_records(tmp_path / name))


def test_the_place_of_an_error_in_json_is_that_in_the_file(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"t": "a"}\n{"t": "b\n')
    with pytest.raises(LetheError, match=r"line 2: not JSON \(.* column 9\)"):
        list(records.read_records(path))
    path.write_text('[{"t": "a"}]\n')
    with pytest.raises(LetheError, match=r"an object is wanted: .* name it \.json"):
        list(records.read_records(path))


def test_numbers_of_few_bits_are_written_as_they_were_meant(tmp_path):
    numbers = pa.array([0.1, None, float("nan"), 2.0], pa.float32())
    table = pa.table({"x": numbers, "y": pa.array([0.1, 1.5, 3.0, -2.0]).cast(pa.float16())})
    pq.write_table(table, tmp_path / "a.parquet")
    fields = [dict(record) for record in records.read_records(tmp_path / "a.parquet")]
    assert str(fields[0]["x"]) == "0.1"
    assert fields[1] == {"x": None, "y": 1.5}
    assert str(fields[2]["x"]) == "nan"
    assert fields[3] == {"x": 2.0, "y": -2.0}


def test_numbers_of_few_bits_in_lists_structs_and_maps_are_written_as_they_were_meant(tmp_path):
    number = pa.float32()
    chosen = pa.list_(pa.struct([("score", number), ("name", pa.string())]))
    columns = {
        "list": pa.array([[0.1, None], None], pa.list_(number)),
        "large": pa.array([[0.1], []], pa.large_list(pa.float32())),
        "fixed": pa.array([[0.1, 2.5], None], pa.list_(number, 2)),
        "struct": pa.array([{"x": 0.1}, None], pa.struct([("x", number)])),
        "nested": pa.array([[{"score": 0.1, "name": "a"}], [None]], chosen),
        "map": pa.array([[("k", 0.1)], None], pa.map_(pa.string(), number)),
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    first, second = records.read_records(tmp_path / "a.parquet")
    assert dict(first) == {
        "list": [0.1, None],
        "large": [0.1],
        "fixed": [0.1, 2.5],
        "struct": {"x": 0.1},
        "nested": [{"score": 0.1, "name": "a"}],
        "map": [("k", 0.1)],
    }
    assert second["large"] == [] and second["nested"] == [None] and second["fixed"] is None


def test_a_csv_cell_may_have_any_length_and_hold_line_breaks(tmp_path):
    long = "a long tale, " * 20_000
    text = f'title,body\npage,"two\nlines, ""quoted"""\n\nbook,"{long}"\n'
    (tmp_path / "a.csv").write_text(text)
    result = list(records.read_records(tmp_path / "a.csv"))
    assert result == [
        {"title": "page", "body": 'two\nlines, "quoted"'},
        {"title": "book", "body": long},
    ]
    assert [record.origin for record in result] == [
        f"{tmp_path}/a.csv, line {number}" for number in (2, 5)
    ]


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("a,b\n1,2\none, two,3\n", r"a\.csv, line 3: 3 cell\(s\), but the header names 2.*quotes"),
        ("a,b\n1,2,\n", r"a\.csv, line 2: 3 cell\(s\), but the header names 2"),
        ("a,b\n1\n", r"a\.csv, line 2: 1 cell\(s\), but the header names 2"),
        ('a,b\n1,"2\n3,4\n', r"a\.csv, line 2: unexpected end of data"),
        ('a,b\n1,"2" x\n', r"a\.csv, line 2: .*expected after"),
        ("a,b,a\n1,2,3\n", r"a\.csv: the header names the column\(s\) \['a'\] twice"),
    ],
)
def test_a_csv_of_the_wrong_shape_is_refused_with_its_line(tmp_path, content, part):
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(LetheError, match=part):
        list(records.read_records(tmp_path / "a.csv"))


@pytest.mark.parametrize(
    "frame",
    [
        {"text": {"0": "one", "1": "two"}},
        {"text": {"0": "one", "5": "two"}, "label": {"0": 1, "5": 2}},
    ],
)
@pytest.mark.parametrize("indent", [None, 1])
def test_columns_of_a_data_frame_are_refused(tmp_path, frame, indent):
    (tmp_path / "a.json").write_text(json.dumps(frame, indent=indent))
    with pytest.raises(LetheError, match=r"a\.json: holds the columns .*records are wanted"):
        list(records.read_records(tmp_path / "a.json"))


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("a.json", b'{"a": 1}\n[2]\n', "line 2: an object is wanted"),
        ("a.json", b'{"a": 1}\n{\n', "line 2: not JSON"),
        ("a.json", b'{"a":\n', "not JSON"),
        ("a.json", b"[1]", "list of objects is wanted"),
        ("a.json", b'"x"', "list of objects is wanted"),
        ("a.jsonl", b"[]\n[]", r'each line is a list of turns, write it as {"messages": \[...\]}'),
        ("a.jsonl.gz", b"no gzip", "not readable as jsonl"),
        ("a.jsonl.gz", gzip.compress(LINES.encode(), mtime=0)[:-9], "not readable as jsonl"),
        ("a.jsonl.zst", b"no zstd", "not readable as jsonl"),
        (
            "a.jsonl.gz",
            gzip.compress(LINES.encode(), mtime=0)[:20] + b"x" * 20,
            "not readable as jsonl",
        ),
        ("a.jsonl", b"[" * 100_000, "line 1: not JSON"),
        ("a.json", b'{"a":' * 100_000, "not JSON"),
        ("a.exe.gz", b"", "ends with"),
    ],
)
def test_what_is_no_file_of_records_is_refused_with_its_name(tmp_path, name, content, part):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(LetheError, match=part) as caught:
        list(records.read_records(tmp_path / name))
    assert name in str(caught.value)


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet", "a.txt", "a.jsonl.gz"])
def test_a_pointer_of_git_lfs_is_no_record(tmp_path, name):
    path = tmp_path / name
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 42\n")
    with pytest.raises(LetheError, match=rf"{name}: this is a Git LFS pointer.*git lfs pull"):
        list(records.read_records(path))


def test_a_call_in_parquet_has_its_own_arguments_only(tmp_path):
    def call(name, **arguments):
        return {"type": "function", "function": {"name": name, "arguments": arguments}}

    chats = []
    for one in (call("weather", city="Paris"), call("add", number=3)):
        ask = {"role": "user", "content": "Go"}
        answer = {"role": "assistant", "content": "", "tool_calls": [one]}
        chats.append({"messages": [ask, answer], "tools": [one], "note": None})
    pq.write_table(pa.Table.from_pylist(chats), tmp_path / "a.parquet")
    assert [dict(record) for record in records.read_records(tmp_path / "a.parquet")] == chats
