"""Files of some kilobytes that unpack to gigabytes are refused before they are read."""

import contextlib
import json
import zipfile

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import tiny

from lethe.completion.predictor import Predictor
from lethe.config.data_settings import DatasetSource
from lethe.data import sources, unpacked_size
from lethe.data.examples import Example, UpstreamExample, read_upstream, write_upstream
from lethe.data.records import read_records
from lethe.errors import LetheError
from lethe.matrix.own_matrix import read_own_matrix

LONG = "x" * 1_000_000
CHAT = [{"role": "user", "content": LONG}, {"role": "assistant", "content": "b"}]


@pytest.fixture
def bound(monkeypatch):
    """A bound of 20 MB instead of 1 GiB, whatever the size of the file."""
    monkeypatch.setattr(unpacked_size, "UNPACKED_BYTES", 20_000_000)
    monkeypatch.setattr(unpacked_size, "UNPACKED_RATIO", 1)


def save(path, columns, **options):
    pq.write_table(pa.table(columns), path, compression="zstd", **options)
    assert path.stat().st_size < 100_000


def test_a_real_file_of_kilobytes_that_unpacks_to_gigabytes_is_refused(tmp_path):
    """No bound is changed here: 3,000 rows of one text of a megabyte are 3 GB."""
    path = tmp_path / "a.parquet"
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 3000, pa.int32()), pa.array([LONG]))
    save(path, {"text": texts}, store_schema=False)
    with pytest.raises(LetheError, match=r"a\.parquet: unpacks to more than 1,073,741,824 bytes"):
        list(read_records(path))


@pytest.mark.parametrize(
    ("columns", "options"),
    [
        ({"text": [LONG] * 50}, {}),
        ({"messages": [CHAT] * 50}, {}),
        (
            {"text": [LONG + str(i) for i in range(50)]},
            {"use_dictionary": False, "column_encoding": {"text": "DELTA_BYTE_ARRAY"}},
        ),
        ({"text": [LONG + str(i) for i in range(50)]}, {"use_dictionary": False}),
        ({"score": np.zeros(3_000_000)}, {}),
        ({"nothing": pa.nulls(3_000_000)}, {}),
    ],
    ids=["dictionary", "chats", "prefixes", "compressed", "run lengths", "nulls"],
)
def test_every_way_to_hide_a_size_in_parquet_is_counted(tmp_path, bound, columns, options):
    path = tmp_path / "a.parquet"
    save(path, columns, **options)
    with pytest.raises(LetheError, match=r"a\.parquet: unpacks to .* if the content is right"):
        list(read_records(path))


@pytest.mark.parametrize("columns", [{"text": [LONG] * 15}, {"messages": [CHAT] * 15}])
def test_files_within_the_bound_are_read(tmp_path, bound, columns):
    path = tmp_path / "a.parquet"
    save(path, columns)
    assert [dict(record) for record in read_records(path)] == pa.table(columns).to_pylist()


def test_a_matrix_and_a_pool_have_the_same_bound(tmp_path, bound):
    matrix = tmp_path / "Z.parquet"
    save(matrix, {"task": ["a", "b"], **{f"e{i}": [LONG * 2, "1"] for i in range(12)}})
    with pytest.raises(LetheError, match=r"Z\.parquet: unpacks to"):
        read_own_matrix(matrix, ["a", "b"], "tasks_in_rows")
    pool = tmp_path / "pool.parquet"
    save(pool, {name: [LONG] * 25 for name in ("example_id", "domain", "split")})
    with pytest.raises(LetheError, match=r"pool\.parquet: unpacks to"):
        read_upstream(pool)


def test_a_pool_of_repeated_texts_is_read(tmp_path):
    pool = []
    for number in range(3000):
        example = Example(text=f"{number % 3} " * 100)
        pool.append(UpstreamExample(f"e{number}", "d", "replayable", example))
    write_upstream(tmp_path / "pool.parquet", pool)
    assert len(read_upstream(tmp_path / "pool.parquet")) == 3000


def stream(path, table, **options):
    with pa.OSFile(str(path), "wb") as file:
        chosen = pa.ipc.IpcWriteOptions(**options)
        with pa.ipc.new_stream(file, table.schema, options=chosen) as writer:
            writer.write_table(table)


@pytest.mark.parametrize("compression", ["zstd", "lz4", None])
def test_a_saved_dataset_of_kilobytes_is_refused(tmp_path, bound, compression):
    folder = tmp_path / "saved"
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(folder)
    (file,) = folder.glob("*.arrow")
    table = pa.table({"text": pa.array([LONG] * 50)})
    if compression is None:
        table = pa.table({"text": table["text"].combine_chunks().dictionary_encode()})
    source = DatasetSource(kind="saved", path=str(folder), text="{text}")
    stream(file, table.slice(0, 15), compression=compression)
    assert len(list(sources.read_source(source, "", upstream=True))) == 15
    stream(file, table, compression=compression)
    with pytest.raises(LetheError, match=r"\.arrow: unpacks to"):
        list(sources.read_source(source, "", upstream=True))


def test_files_of_a_saved_dataset_are_checked_whatever_their_endings(tmp_path, bound):
    folder = tmp_path / "saved"
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(folder)
    state = json.loads((folder / "state.json").read_text())
    state["_data_files"] = [{"filename": "data.feather"}]
    (folder / "state.json").write_text(json.dumps(state))
    stream(folder / "data.feather", pa.table({"text": pa.array([LONG] * 50)}), compression="zstd")
    source = DatasetSource(kind="saved", path=str(folder), text="{text}")
    with pytest.raises(LetheError, match=r"data\.feather: unpacks to"):
        list(sources.read_source(source, "", upstream=True))


@pytest.mark.parametrize(
    "state",
    ["", "[]", "{}", '{"_data_files": [{"filename": 1}, {"filename": "a"}]}', "[" * 9999],
)
def test_a_state_that_names_no_files_is_left_to_its_reader(tmp_path, state):
    (tmp_path / "state.json").write_text(state)
    unpacked_size.refuse_large_arrow(tmp_path)


def test_a_predictor_of_kilobytes_is_refused(tmp_path, bound):
    path = tmp_path / "p.npz"
    np.savez_compressed(path, train=np.zeros((10, 300_000)))
    with pytest.raises(LetheError, match=r"p\.npz: unpacks to 24,000,128 bytes"):
        Predictor.load(path)


def test_unreadable_archives_are_left_to_their_reader(tmp_path):
    for name, content in {"a.npz": b"no zip", "b.arrow": b"no arrow"}.items():
        (tmp_path / name).write_bytes(content)
    unpacked_size.refuse_large_archive(tmp_path / "a.npz")
    unpacked_size.refuse_large_arrow(tmp_path)
    with zipfile.ZipFile(tmp_path / "c.npz", "w") as archive:
        archive.writestr("a", b"b")
    unpacked_size.refuse_large_archive(tmp_path / "c.npz")


def test_a_damaged_footer_raises_and_does_not_end_the_process(tmp_path):
    path = tmp_path / "a.parquet"
    write_upstream(path, tiny.upstream(3))
    content = path.read_bytes()
    length = int.from_bytes(content[-8:-4], "little")
    for position in range(len(content) - 8 - length, len(content) - 8):
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        with contextlib.suppress(LetheError, OSError, ValueError, pa.ArrowException):
            unpacked_size.refuse_large_parquet(path)
