import hashlib
import os
import re

import pytest

from lethe import files
from lethe.errors import LetheError
from lethe.files import atomic_write, read_json, refuse_unwritable, sha256, write_json


def test_a_file_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "new" / "folder" / "file.txt"
    with atomic_write(path) as part:
        part.write_text("half")
        assert not path.exists()
        assert part.parent == path.parent
    assert path.read_text() == "half"
    assert [found.name for found in path.parent.iterdir()] == ["file.txt"]


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, failure):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(failure), atomic_write(path) as part:
        part.write_text("half")
        raise failure
    assert path.read_text() == "old"
    assert [found.name for found in tmp_path.iterdir()] == ["file.txt"]


def test_nothing_written_is_an_error_and_leaves_the_old_file(tmp_path):
    (tmp_path / "file.txt").write_text("old")
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "file.txt"):
        pass
    assert (tmp_path / "file.txt").read_text() == "old"


def test_json_has_sorted_keys_and_comes_back(tmp_path):
    write_json(tmp_path / "a.json", {"b": [1, None], "a": "é"})
    write_json(tmp_path / "b.json", {"a": "é", "b": [1, None]})
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert read_json(tmp_path / "a.json") == {"b": [1, None], "a": "é"}


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff"])
def test_what_is_no_json_is_named(tmp_path, content):
    if content is not None:
        (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(LetheError, match=r"a\.json: not readable as JSON.*run again"):
        read_json(tmp_path / "a.json")


def test_sha256_is_that_of_the_content(tmp_path):
    (tmp_path / "a").write_bytes(b"seven sacks")
    assert sha256(tmp_path / "a") == hashlib.sha256(b"seven sacks").hexdigest()


def test_content_is_on_the_disk_before_it_replaces_the_old_file(tmp_path, monkeypatch):
    """After a power cut there is the old or the new file, never an empty one."""
    events = []
    synced = files.os.fsync
    replaced = files.os.replace

    def fsync(descriptor):
        events.append("sync")
        synced(descriptor)

    def replace(source, target):
        events.append("replace")
        replaced(source, target)

    monkeypatch.setattr(files.os, "fsync", fsync)
    monkeypatch.setattr(files.os, "replace", replace)
    with atomic_write(tmp_path / "file.txt") as part:
        part.write_text("new")
    assert events == ["sync", "replace", "sync"]


def test_json_with_a_byte_order_mark_is_read(tmp_path):
    (tmp_path / "a.json").write_text('{"a": 1}', encoding="utf-8-sig")
    assert read_json(tmp_path / "a.json") == {"a": 1}


def test_no_message_advises_to_delete_a_file(tmp_path):
    (tmp_path / "settings.json").write_text("{")
    with pytest.raises(LetheError) as caught:
        read_json(tmp_path / "settings.json")
    assert "delete" not in str(caught.value)


def test_a_large_file_is_hashed_again_only_if_its_size_or_times_changed(tmp_path, monkeypatch):
    monkeypatch.setenv("LETHE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(files, "LARGE_FILE", 4)
    path, calls = tmp_path / "weights", []

    def counting(path, inside=files.sha256):
        calls.append(path)
        return inside(path)

    monkeypatch.setattr(files, "sha256", counting)
    path.write_bytes(b"first")
    first = files.cached_sha256(path)
    assert files.cached_sha256(path) == first and len(calls) == 1
    before = path.stat()
    path.write_bytes(b"other")
    # Copying tools restore the time of the content, but not that of the inode.
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert files.cached_sha256(path) != first and len(calls) == 2
    (cache,) = (tmp_path / "cache/hashes").iterdir()
    cache.write_text("not json")
    assert files.cached_sha256(path) != first and len(calls) == 3


def test_the_cache_is_in_the_folder_that_the_environment_names(monkeypatch):
    monkeypatch.setenv("LETHE_CACHE", "elsewhere")
    assert files.cache_folder() == "elsewhere"
    monkeypatch.delenv("LETHE_CACHE")
    assert files.cache_folder().endswith(os.path.join(".cache", "lethe"))


def test_a_folder_is_on_the_disk_before_anything_says_that_it_is_complete(tmp_path, monkeypatch):
    (tmp_path / "model/parts").mkdir(parents=True)
    (tmp_path / "model/config.json").write_text("{}")
    (tmp_path / "model/parts/1.safetensors").write_bytes(b"1")
    synced = []
    monkeypatch.setattr(files, "_sync", lambda path: synced.append(path.name))
    files.sync_folder(tmp_path / "model")
    assert synced == ["config.json", "parts", "1.safetensors", "model"]


def test_a_file_that_cannot_be_written_is_refused_beforehand(tmp_path):
    refuse_unwritable(tmp_path / "new" / "a.parquet")
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file" / "a.parquet", tmp_path / ("x" * 300)):
        with pytest.raises(LetheError, match=f"^{re.escape(str(path))}: cannot be written"):
            refuse_unwritable(path)
