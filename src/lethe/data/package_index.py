"""Downloads source packages from the indexes that pip is configured with, without pip.

pip runs the build script of a source package to read its metadata, even if it only downloads. Only
the archive is needed here, so it is found on the index's page (PEP 503), its hash is checked, and
it is never built.
"""

import base64
import html.parser
import re
import shlex
import shutil
import ssl
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lethe.errors import LetheError, one_line
from lethe.files import sha256

DEFAULT_INDEX = "https://pypi.org/simple"
_REQUIREMENT = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)==[0-9]+(\.[0-9]+)*")
_SECONDS = 60


def name_of(requirement: str) -> str:
    """The package's name in a requirement, which must be written `name==version`.

    Raises
    ------
    LetheError
        If it is anything else, such as an option, an address or a path.
    """
    match = _REQUIREMENT.fullmatch(requirement)
    if match is None:
        raise LetheError(f"{requirement!r} is not a requirement name==version; it is not fetched")
    return match[1]


@dataclass(frozen=True)
class PackageIndexes:
    """Folders and indexes to look at in order, and how to connect to the indexes.

    An index has one page per package.
    """

    addresses: tuple[str, ...] = (DEFAULT_INDEX,)
    folders: tuple[str, ...] = ()
    certificates: str | None = None
    proxy: str | None = None

    @classmethod
    def of_pip(cls) -> "PackageIndexes":
        """Those of pip's configuration: index-url, extra-index-url, find-links, cert and so on."""
        listing = subprocess.run(
            [sys.executable, "-m", "pip", "config", "list"],
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        return cls.of_settings(_settings(listing.stdout))

    @classmethod
    def of_settings(cls, settings: Mapping[str, str]) -> "PackageIndexes":
        """Those of pip's settings, by key without section."""
        addresses = [settings.get("index-url", DEFAULT_INDEX)]
        addresses += settings.get("extra-index-url", "").split()
        if settings.get("no-index", "").lower() in ("1", "true", "yes", "on"):
            addresses = []
        return cls(
            addresses=tuple(addresses),
            folders=tuple(settings.get("find-links", "").split()),
            certificates=settings.get("cert"),
            proxy=settings.get("proxy"),
        )

    def download(self, requirement: str, file: str, digest: str, folder: Path) -> Path:
        """Downloads a file of a package into a folder.

        Parameters
        ----------
        requirement
            `name==version`.
        file
            Name of the file on the index.
        digest
            Its SHA-256.

        Raises
        ------
        LetheError
            If no index has the file, or it has another hash.
        """
        name = re.sub(r"[-_.]+", "-", name_of(requirement)).lower()
        path = folder / file
        for source in self.folders:
            candidate = Path(source.removeprefix("file://"), file)
            if candidate.is_file() and sha256(candidate) == digest:
                shutil.copyfile(candidate, path)
                return path
        reasons = [] if self.addresses else ["pip's setting no-index excludes all indexes"]
        for address in self.addresses:
            page = f"{address.rstrip('/')}/{name}/"
            try:
                link = self._link(page, file)
                if link is None:
                    reasons.append(f"{_without_password(page)} does not list it")
                    continue
                with self._open(link) as source, open(path, "wb") as target:
                    shutil.copyfileobj(source, target)
            except (OSError, ValueError) as error:
                reasons.append(f"{_without_password(page)}: {one_line(error)}")
                continue
            if (actual := sha256(path)) == digest:
                return path
            path.unlink()
            reasons.append(f"{_without_password(page)} has it with another SHA-256, {actual}")
        raise LetheError(
            f"could not download {requirement}: {file} ({'; '.join(reasons)}); check the network "
            "and the sha256 in the experiment, or copy the cache (LETHE_CACHE) of a machine that "
            "has the package"
        )

    def _link(self, page: str, file: str) -> str | None:
        """The address of a file on a package's page."""
        # A folder of files has no server that adds the name of the page.
        local = f"{page}index.html" if page.startswith("file:") else page
        with self._open(local) as response:
            links = _Links()
            links.feed(response.read().decode("utf-8", "replace"))
        for link in links.addresses:
            address = urllib.parse.urljoin(page, link).partition("#")[0]
            name = urllib.parse.unquote(urllib.parse.urlsplit(address).path).rpartition("/")[2]
            if name == file:
                return address
        return None

    def _open(self, address: str):
        parts = urllib.parse.urlsplit(address)
        if parts.scheme not in ("https", "http", "file"):
            raise ValueError(f"addresses begin with https, http or file, not {parts.scheme!r}")
        request = urllib.request.Request(
            _without_password(address), headers={"Accept": "text/html"}
        )
        if parts.username:
            login = urllib.parse.unquote(f"{parts.username}:{parts.password or ''}")
            credentials = f"Basic {base64.b64encode(login.encode()).decode()}"
            # A redirect may lead to another host, which must not get the password
            # (_SameHostLogin).
            request.add_unredirected_header("Authorization", credentials)
        context = ssl.create_default_context(cafile=self.certificates)
        handlers = [urllib.request.HTTPSHandler(context=context), _SameHostLogin()]
        if self.proxy:
            proxies = {"http": self.proxy, "https": self.proxy}
            handlers.append(urllib.request.ProxyHandler(proxies))
        opener = urllib.request.build_opener(*handlers)
        return opener.open(request, timeout=_SECONDS)


class _SameHostLogin(urllib.request.HTTPRedirectHandler):
    """Keeps the password on redirects within the same host."""

    def redirect_request(self, req, *rest):
        redirected = super().redirect_request(req, *rest)
        login = req.unredirected_hdrs.get("Authorization")
        if redirected is not None and login is not None:
            old, new = (urllib.parse.urlsplit(r.full_url) for r in (req, redirected))
            if (old.scheme, old.netloc) == (new.scheme, new.netloc):
                redirected.add_unredirected_header("Authorization", login)
        return redirected


class _Links(html.parser.HTMLParser):
    """The addresses of all links of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a" and (address := dict(attrs).get("href")):
            self.addresses.append(address)


def _settings(listing: str) -> dict[str, str]:
    """Settings of `pip config list`, lines such as `global.index-url='...'`, by key.

    pip prints the environment first; it wins over files.
    """
    settings: dict[str, str] = {}
    for line in listing.splitlines():
        key, separator, value = line.partition("=")
        if not separator:
            continue
        try:
            text = " ".join(shlex.split(value))
        except ValueError:
            continue
        section, _, name = key.rpartition(".")
        if section in (":env:", "global", "download"):
            settings.setdefault(name, text.replace("\\n", " "))
    return settings


def _without_password(address: str) -> str:
    parts = urllib.parse.urlsplit(address)
    return urllib.parse.urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
