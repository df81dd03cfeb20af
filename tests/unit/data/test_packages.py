"""Packages in a cache that several runs share."""

import hashlib
import io
import json
import tarfile
import threading
import zipfile

import pytest

from lethe.data import bigbench, packages
from lethe.data.packages import Package, cached_package
from lethe.errors import LetheError


def source_package(text: str = "2") -> bytes:
    """The bytes of a BIG-bench package with one task."""
    content = json.dumps({"examples": [{"input": "1 + 1", "target": text}]}).encode()
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        info = tarfile.TarInfo("bigbench-1.0.0/bigbench/benchmark_tasks/add/task.json")
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()


@pytest.fixture
def index(monkeypatch):
    """Content of the package on PyPI, and how often it was fetched."""
    index = {"content": source_package(), "fetched": 0}

    def fetch(package, folder):
        index["fetched"] += 1
        path = folder / package.file
        path.write_bytes(index["content"])
        return path

    monkeypatch.setattr(packages, "fetch", fetch)
    return index


def pinned(content: bytes) -> Package:
    digest = hashlib.sha256(content).hexdigest()
    return Package("bigbench-1.0.0.tar.gz", "bigbench==1.0.0", digest)


def answer(archive) -> str:
    (example,) = bigbench.read_bigbench(archive, "add")
    return example.answer


def test_an_extract_is_made_once_and_the_package_is_not_kept(index, tmp_path):
    package = pinned(index["content"])
    archive = bigbench.cached_extract(package, tmp_path / "cache")
    first = archive.read_bytes()
    assert bigbench.cached_extract(package, tmp_path / "cache") == archive
    assert index["fetched"] == 1 and archive.read_bytes() == first and answer(archive) == "2"
    names = {path.name for path in archive.parent.iterdir() if not path.name.startswith(".")}
    assert names == {"bigbench-1.0.0.zip", "bigbench-1.0.0.zip.json"}


def test_a_truncated_or_foreign_extract_is_made_again(index, tmp_path, caplog):
    package = pinned(index["content"])
    archive = bigbench.cached_extract(package, tmp_path)
    whole = archive.read_bytes()
    archive.write_bytes(whole[: len(whole) // 2])
    assert bigbench.cached_extract(package, tmp_path).read_bytes() == whole
    with zipfile.ZipFile(archive, "w") as foreign:
        foreign.writestr("add/task.json", '{"examples": []}')
    assert bigbench.cached_extract(package, tmp_path).read_bytes() == whole
    assert index["fetched"] == 3 and caplog.text.count("made again") == 2


def test_an_extract_of_another_package_is_made_again(index, tmp_path):
    bigbench.cached_extract(pinned(index["content"]), tmp_path)
    index["content"] = source_package("two")
    archive = bigbench.cached_extract(pinned(index["content"]), tmp_path)
    assert answer(archive) == "two"


def test_an_extract_of_an_earlier_version_is_used_if_it_is_whole(index, tmp_path):
    package = pinned(index["content"])
    archive = bigbench.cached_extract(package, tmp_path)
    whole = archive.read_bytes()
    record = packages.record_path(archive)
    record.unlink()
    bigbench.cached_extract(package, tmp_path)
    assert index["fetched"] == 1 and record.exists()
    record.unlink()
    archive.write_bytes(whole[:-30])
    bigbench.cached_extract(package, tmp_path)
    assert index["fetched"] == 2 and archive.read_bytes() == whole


def test_a_copied_cache_is_used_as_it_is(index, tmp_path):
    package = pinned(index["content"])
    archive = bigbench.cached_extract(package, tmp_path / "here")
    copy = tmp_path / "there"
    copy.mkdir()
    for path in (archive, packages.record_path(archive)):
        (copy / path.name).write_bytes(path.read_bytes())
    assert bigbench.cached_extract(package, copy) == copy / archive.name
    assert index["fetched"] == 1


def test_two_runs_that_start_with_an_empty_cache_make_one_extract(index, tmp_path):
    package = pinned(index["content"])
    threads = []
    for _ in range(4):
        threads.append(threading.Thread(target=bigbench.cached_extract, args=(package, tmp_path)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert index["fetched"] == 1 and answer(tmp_path / "bigbench-1.0.0.zip") == "2"


def test_a_wheel_is_kept_and_a_damaged_one_is_fetched_again(index, tmp_path):
    content = index["content"]
    package = Package("a-1-py3-none-any.whl", "a==1", hashlib.sha256(content).hexdigest())
    path = cached_package(package, tmp_path)
    assert cached_package(package, tmp_path) == path and index["fetched"] == 1
    path.write_bytes(content[:10])
    assert cached_package(package, tmp_path).read_bytes() == content and index["fetched"] == 2


def test_a_cache_that_is_no_folder_is_named(index, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(LetheError, match=r"file.*cannot be written.*LETHE_CACHE"):
        bigbench.cached_extract(pinned(index["content"]), tmp_path / "file/cache")


def test_a_package_that_pip_cannot_get_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(LetheError, match=r"could not download nothing==1.*LETHE_CACHE"):
        cached_package(Package("nothing-1.tar.gz", "nothing==1", "0" * 64), tmp_path)
    assert not list(tmp_path.glob("nothing*"))
