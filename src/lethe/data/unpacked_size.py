"""How many bytes a compressed file may unpack to, checked before they fill the memory.

A file of some kilobytes can unpack to terabytes: by compression, by a dictionary that stores a
repeated text once, or by run lengths that store a repeated number once. Every compressed file of
a user may unpack to 1 GiB, or to 200 times its own size if that is more. Text rarely shrinks to
less than a twentieth.
"""

import json
import struct
import zipfile
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lethe.errors import LetheError

UNPACKED_BYTES = 2**30
UNPACKED_RATIO = 200

# Rows that are unpacked at once while their texts are counted.
ROWS_AT_ONCE = 65_536
# Bytes that a value counts at least. A null or a repeated number takes none in the file.
VALUE_BYTES = 8
# Encodings of Parquet whose size in the footer is not that of the texts.
DICTIONARIES = {"RLE_DICTIONARY", "PLAIN_DICTIONARY"}
PREFIXES = "DELTA_BYTE_ARRAY"


def unpacked_bound(*paths: Path) -> int:
    """Bytes that these files may unpack to, together."""
    size = sum(path.stat().st_size for path in paths)
    return max(UNPACKED_BYTES, UNPACKED_RATIO * size)


def unpacks_too_far(path: Path | str, count: int, bound: int, *, exact: bool = False) -> LetheError:
    """The error for a file that unpacks to more bytes than it may.

    Parameters
    ----------
    count
        Bytes that were counted; more may follow unless `exact`.
    """
    size = f"{count:,} bytes" if exact else f"more than {bound:,} bytes"
    limit = f"at most {bound:,} bytes" if exact else "at most as many"
    return LetheError(
        f"{path}: unpacks to {size}, and {limit} are read (1 GiB, or {UNPACKED_RATIO} times the "
        "file's size if that is more); if the content is right, save it without compression and "
        "dictionaries, or as .jsonl (records) or .npy (a matrix)"
    )


def refuse_large_parquet(path: Path | str) -> None:
    """Makes sure that a Parquet file unpacks to no more bytes than it may.

    The sizes come from the footer. Texts that are stored once and repeated are counted by their
    lengths, row by row.

    Raises
    ------
    LetheError
        Naming the file and both sizes, if it does not.
    OSError, ValueError, pyarrow.ArrowException
        If it is no Parquet file, or a damaged one.
    """
    path = Path(path)
    bound = unpacked_bound(path)
    with pq.ParquetFile(path, pre_buffer=False) as file:
        metadata = file.metadata
        groups = [g for g in range(metadata.num_row_groups) if metadata.row_group(g).num_rows]
        count = sum(metadata.row_group(g).total_byte_size for g in groups)
        if count > bound:
            raise unpacks_too_far(path, count, bound, exact=True)
        # pyarrow's metadata ends the whole process at a damaged column, and its reader raises.
        for group in groups:
            next(file.iter_batches(1, row_groups=[group]), None)
    count = VALUE_BYTES * metadata.num_rows
    # Column -> the most bytes that its texts can have.
    repeated: dict[str, int] = {}
    # Column whose texts share beginnings -> the most bytes of one text.
    longest: dict[str, int] = {}
    schema = metadata.schema
    for group in map(metadata.row_group, groups):
        for position in range(metadata.num_columns):
            chunk = group.column(position)
            size = chunk.total_uncompressed_size
            if chunk.physical_type != "BYTE_ARRAY":
                width = max(VALUE_BYTES, schema.column(position).length)
                count += max(size, width * chunk.num_values)
                continue
            count += max(size, VALUE_BYTES * chunk.num_values)
            name = chunk.path_in_schema
            if not {PREFIXES, *DICTIONARIES}.isdisjoint(chunk.encodings):
                repeated[name] = repeated.get(name, 0) + size * chunk.num_values
            if PREFIXES in chunk.encodings:
                longest[name] = max(longest.get(name, 1), size)
    if count > bound:
        raise unpacks_too_far(path, count, bound, exact=True)
    if count + sum(repeated.values()) <= bound:
        return
    dictionaries = [name for name in repeated if name not in longest]
    count = 0
    # A repeated text takes memory once if its column is read as a dictionary.
    with pq.ParquetFile(path, pre_buffer=False, read_dictionary=dictionaries) as file:
        sizes = [_text_sizes(file, dictionaries, ROWS_AT_ONCE)]
        for name, most in longest.items():
            sizes.append(_text_sizes(file, [name], UNPACKED_BYTES // most))
        for size in chain.from_iterable(sizes):
            count += size
            if count > bound:
                raise unpacks_too_far(path, count, bound)


def _text_sizes(file: pq.ParquetFile, columns: list[str], rows: int) -> Iterator[int]:
    """Yields the bytes of the texts in some columns, some rows at a time."""
    if not columns:
        return
    for batch in file.iter_batches(min(max(rows, 1), ROWS_AT_ONCE), columns=columns):
        yield sum(decoded_bytes(column) for column in batch.columns)


def refuse_large_arrow(folder: Path | str) -> None:
    """Makes sure that the files of a saved dataset unpack to no more bytes than they may.

    They are the .arrow files in its folder, and all files that a state.json names, whatever their
    endings. A file that is not readable is left to its reader.

    Raises
    ------
    LetheError
        Naming the file and the bound, if one does not.
    """
    for path in sorted({*Path(folder).rglob("*.arrow"), *_named_in_state(Path(folder))}):
        try:
            bound = unpacked_bound(path)
            with pa.memory_map(str(path)) as source:
                compressed = sum(_uncompressed_bytes(source))
            if compressed > bound:
                raise unpacks_too_far(path, compressed, bound, exact=True)
            count = 0
            with pa.memory_map(str(path)) as source:
                for batch in pa.ipc.open_stream(source):
                    count += VALUE_BYTES * batch.num_rows
                    count += sum(decoded_bytes(column) for column in batch.columns)
                    if count > bound:
                        raise unpacks_too_far(path, count, bound)
        except (OSError, ValueError, IndexError, pa.ArrowException, struct.error):
            continue


def _named_in_state(folder: Path) -> Iterator[Path]:
    """Yields the files that the library `datasets` reads, which a state.json per split names."""
    for path in folder.rglob("state.json"):
        try:
            state = json.loads(path.read_text("utf-8"))
            names = [file["filename"] for file in state["_data_files"]]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue
        yield from (path.parent / name for name in names if isinstance(name, str))


def refuse_large_archive(path: Path | str) -> None:
    """Makes sure that a zip, such as an .npz file, unpacks to no more bytes than it may.

    A file that is not readable is left to its reader.

    Raises
    ------
    LetheError
        Naming the file and both sizes, if it does not.
    """
    path = Path(path)
    try:
        bound = unpacked_bound(path)
        with zipfile.ZipFile(path) as archive:
            count = sum(member.file_size for member in archive.infolist())
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return
    if count > bound:
        raise unpacks_too_far(path, count, bound, exact=True)


def decoded_bytes(array: pa.Array) -> int:
    """Bytes of an array's values if each repeated text is written out."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        if not len(array.dictionary):
            return VALUE_BYTES * len(array)
        lengths = _lengths(array.dictionary)
        return VALUE_BYTES * len(array) + (pc.sum(lengths.take(array.indices)).as_py() or 0)
    if pa.types.is_struct(kind):
        return sum(decoded_bytes(field) for field in array.flatten())
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return VALUE_BYTES * len(array) + decoded_bytes(array.flatten())
    if pa.types.is_map(kind):
        return decoded_bytes(array.keys) + decoded_bytes(array.items)
    return max(VALUE_BYTES * len(array), array.nbytes)


def _lengths(texts: pa.Array) -> pa.Array:
    """The bytes of each value of a dictionary."""
    kind = texts.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return pc.binary_length(texts).cast(pa.int64())
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return pc.binary_length(texts).cast(pa.int64())
    return pa.array([decoded_bytes(texts.slice(i, 1)) for i in range(len(texts))], pa.int64())


# ---- messages of Arrow: their metadata is a flatbuffer, which pyarrow does not open

_HEADER = 2  # field of a message: the table of its record batch
_BUFFERS = 2  # field of a record batch: offset and length of each buffer
_COMPRESSION = 3  # field of a record batch: absent if the buffers are as they are
_DICTIONARY_BATCH = 1  # field of a dictionary: the record batch with its values


def _uncompressed_bytes(source: pa.NativeFile) -> Iterator[int]:
    """Yields the bytes that each compressed message of a stream unpacks to."""
    for message in pa.ipc.MessageReader.open_stream(source):
        if message.type not in ("record batch", "dictionary"):
            continue
        metadata = message.metadata.to_pybytes()
        batch = _table(metadata, _table(metadata, 0), _HEADER)
        if message.type == "dictionary":
            batch = _table(metadata, batch, _DICTIONARY_BATCH)
        if batch is None or _field(metadata, batch, _COMPRESSION) is None:
            continue
        yield sum(_buffer_bytes(metadata, batch, message.body))


def _buffer_bytes(metadata: bytes, batch: int, body: pa.Buffer) -> Iterator[int]:
    """Yields the size that each compressed buffer states in its first eight bytes."""
    position = _field(metadata, batch, _BUFFERS)
    if position is None:
        return
    start = position + struct.unpack_from("<I", metadata, position)[0]
    for number in range(struct.unpack_from("<I", metadata, start)[0]):
        offset, length = struct.unpack_from("<qq", metadata, start + 4 + 16 * number)
        if length >= 8:
            size = struct.unpack("<q", body.slice(offset, 8).to_pybytes())[0]
            # -1 marks a buffer that was left as it is.
            yield length if size < 0 else size


def _table(metadata: bytes, table: int, field: int | None = None) -> int | None:
    """Position of the root table, or of the table that a field of another one points to."""
    position = table if field is None else _field(metadata, table, field)
    if position is None:
        return None
    return position + struct.unpack_from("<I", metadata, position)[0]


def _field(metadata: bytes, table: int, number: int) -> int | None:
    """Position of a field of a table, or None if the table does not have it."""
    fields = table - struct.unpack_from("<i", metadata, table)[0]
    size = struct.unpack_from("<H", metadata, fields)[0]
    entry = 4 + 2 * number
    if entry + 2 > size:
        return None
    offset = struct.unpack_from("<H", metadata, fields + entry)[0]
    return table + offset if offset else None
