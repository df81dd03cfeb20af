"""A call of a job script's function as JSON, so that another process can make it."""

import importlib.util
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lethe.errors import LetheError


def to_json(function: Callable[..., None], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Describes a call as JSON values; arguments are JSON values, paths and lists of files."""
    script = os.path.abspath(function.__globals__["__file__"])
    return {"script": script, "function": function.__name__, "arguments": _plain(arguments)}


def from_json(call: str | bytes) -> dict[str, Any]:
    """Reads a call: `function` becomes a function again, and paths become paths."""
    request = json.loads(call, object_hook=_decode)
    return request | {"function": _function(request["script"], request["function"])}


def _plain(value: Any) -> Any:
    """The value as JSON: a path is marked as one, and Snakemake's named lists become mappings."""
    if isinstance(value, Path):
        return {"__path__": str(value)}
    names = dict(value.items()) if hasattr(value, "items") else {}
    if names or isinstance(value, Mapping):
        return {key: _plain(part) for key, part in names.items()}
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value


def _decode(value: dict) -> Any:
    return Path(value["__path__"]) if set(value) == {"__path__"} else value


def _function(script: str, name: str) -> Callable[..., None]:
    spec = importlib.util.spec_from_file_location(Path(script).stem, script)
    if spec is None or spec.loader is None:
        raise LetheError(f"{script}: not a Python script")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)
