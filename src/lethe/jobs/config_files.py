"""Checks the files of `snakemake --configfile` before Snakemake reads them.

Snakemake reads them before it reads the Snakefile, and a wrong one ends with a traceback, or
without the name of the file. It reads a profile even earlier, and evaluates the Python in it. The
profiles of this project call `refuse_wrong_config_files` there.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from lethe.config.yaml_file import read_yaml
from lethe.errors import ExperimentError, LetheError, error_message

OPTIONS = ("--configfile", "--configfiles")
# With this key Snakemake takes expressions in a config file for Python code.
RUNS_CODE = "__use_yte__"


def config_files(arguments: Sequence[str]) -> list[Path]:
    """The files that a command line of Snakemake names as config files, in its order.

    The option takes every argument up to the next option. If it stands twice, the second counts.
    """
    files: list[Path] = []
    in_option = False
    for argument in arguments:
        option, equals, value = argument.partition("=")
        if argument == "--":
            break
        if option in OPTIONS:
            files = [Path(value)] if equals else []
            in_option = not equals
        elif argument.startswith("-"):
            in_option = False
        elif in_option:
            files.append(Path(argument))
    return files


def check_config_files(arguments: Sequence[str]) -> None:
    """Checks that every config file on a command line of Snakemake is a mapping of keys.

    Raises
    ------
    LetheError
        If one is missing, is not valid YAML or JSON, or holds something else, with its name. If it
        is not the first, the message adds where a target belongs.
    """
    for index, path in enumerate(config_files(arguments)):
        try:
            _check(path)
        except LetheError as error:
            if not index:
                raise
            raise LetheError(
                f"{error}; if {path} is a target, name it before --configfile, because Snakemake "
                "takes every name after this option for a config file"
            )


def _check(path: Path) -> None:
    if not path.exists():
        raise LetheError(f"{path}: no such file; name the YAML file of an experiment")
    content = _read_json(path) if path.suffix == ".json" else read_yaml(path)
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise ExperimentError(str(path), [f"an experiment is a mapping of keys, not {kind}"])
    if RUNS_CODE in content:
        # Snakemake would run the Python in the file before lethe reads it.
        raise ExperimentError(str(path), [f"{RUNS_CODE}: no such key; remove it"])


def _read_json(path: Path) -> object:
    try:
        return json.loads(path.read_text("utf-8"))
    except OSError as error:
        problem = f"cannot be read ({error.strerror}); name a file"
    except RecursionError:
        problem = "holds values nested too deeply; write it flatter"
    except ValueError as error:
        # Not UTF-8, or not JSON; the message names the line or the byte.
        problem = f"not valid JSON ({error})"
    raise ExperimentError(str(path), [problem])


def refuse_wrong_config_files() -> None:
    """Ends this process with the error if its command line names a wrong config file.

    Raises
    ------
    SystemExit
        With the message that Python prints to stderr, and exit code 1.
    """
    try:
        check_config_files(sys.argv[1:])
    except LetheError as error:
        raise SystemExit(error_message(error))
