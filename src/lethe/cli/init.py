"""`lethe init`: a small experiment with chats and documents, to replace by your own."""

import json
import os
import re
import shlex
from functools import partial
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated

import typer

from lethe.cli.options import AsJson
from lethe.cli.output import print_json
from lethe.errors import LetheError

# Folder of the files as the experiment in them names it.
EXAMPLE_FOLDER = "experiments/own-data"
EXPERIMENT = "own-data.yaml"


def write_own_data(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder to write into; made if missing.")
    ],
    as_json: AsJson = False,
) -> None:
    """Write a small, complete experiment with chats and documents into a folder.

    It holds twenty chats, two documents, a task table and one YAML file, and it runs as it stands.
    Replace its files by your own. A file that exists is never overwritten: if one is there,
    nothing is written. Paths in the experiment are relative to the current folder.

    Example::

      lethe init own
      lethe pool own/own-data.yaml -o pool.parquet
      lethe run own/own-data.yaml --cores 2
    """
    source = resources.files("lethe.cli") / "own_data"
    contents = _contents(source, folder)
    existing = [name for name in contents if os.path.lexists(folder / name)]
    if existing:
        raise LetheError(
            f"{folder / existing[0]}: exists, and no file of yours is overwritten; nothing was "
            "written. Choose another folder"
        )
    _refuse_files_as_folders([folder / name for name in contents])
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        # Fails if another program made the file since the check.
        with path.open("xb") as stream:
            stream.write(content)
    paths = [(folder / name).as_posix() for name in contents]
    experiment = (folder / EXPERIMENT).as_posix()
    if as_json:
        print_json({"folder": str(folder), "files": paths, "experiment": experiment})
        return
    print("\n".join(paths))
    # Quoted for the shell, because a folder's name may hold spaces.
    argument = shlex.quote(experiment)
    print(f"\nNext: lethe pool {argument} -o pool.parquet")
    print(f"  or: lethe run {argument} --cores 2 (in a checkout of lethe)")


def _refuse_files_as_folders(paths: list[Path]) -> None:
    """Refuses paths below a file, before anything is written."""
    for path in paths:
        for parent in path.parents:
            if os.path.lexists(parent) and not parent.is_dir():
                raise LetheError(
                    f"{parent}: is a file, but a folder is needed; nothing was written. Choose "
                    "another folder"
                )


def _contents(source: Traversable, folder: Path) -> dict[str, bytes]:
    """Name and content of each file; the experiment's paths lead to the folder."""
    contents = {}
    for name in _names(source):
        content = source.joinpath(*name.split("/")).read_bytes()
        if name.endswith(".yaml"):
            content = _with_folder(content.decode("utf-8"), folder.as_posix()).encode("utf-8")
        contents[name] = content
    return contents


def _with_folder(text: str, folder: str) -> str:
    """An experiment whose paths lead to the folder.

    Values are quoted where the folder's name means something in YAML.
    """
    lines = []
    for line in text.splitlines(keepends=True):
        if line.startswith("#"):
            lines.append(line.replace(EXAMPLE_FOLDER, folder))
        else:
            lines.append(re.sub(rf"{EXAMPLE_FOLDER}[\w./-]*", partial(_quoted_path, folder), line))
    return "".join(lines)


def _quoted_path(folder: str, path: re.Match) -> str:
    replaced = path[0].replace(EXAMPLE_FOLDER, folder)
    if re.fullmatch(r"[\w./-]+", replaced):
        return replaced
    return json.dumps(replaced, ensure_ascii=False)


def _names(folder: Traversable, prefix: str = "") -> list[str]:
    names = []
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.is_dir():
            names += _names(entry, f"{prefix}{entry.name}/")
        else:
            names.append(f"{prefix}{entry.name}")
    return names
