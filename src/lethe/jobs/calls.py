"""A call of a job script's function as JSON, so that another process can make it."""

import importlib
import importlib.util
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lethe.config.settings import Settings
from lethe.errors import LetheError


def to_json(function: Callable[..., None], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Describes a call as JSON values.

    Arguments are JSON values, paths, lists of files, and settings of `lethe.config`.
    """
    script = os.path.abspath(function.__globals__["__file__"])
    return {"script": script, "function": function.__name__, "arguments": _plain(arguments)}


def from_json(call: str | bytes) -> dict[str, Any]:
    """Reads a call: `function` becomes a function again, as do paths and settings."""
    request = json.loads(call, object_hook=_decode)
    return request | {"function": _function(request["script"], request["function"])}


def _plain(value: Any) -> Any:
    """The value as JSON: paths and settings are marked, Snakemake's named lists become mappings."""
    if isinstance(value, Path):
        return {"__path__": str(value)}
    if isinstance(value, Settings):
        kind = f"{type(value).__module__}:{type(value).__name__}"
        return {"__settings__": kind, "values": value.model_dump(mode="json")}
    names = dict(value.items()) if hasattr(value, "items") else {}
    if names or isinstance(value, Mapping):
        return {key: _plain(part) for key, part in names.items()}
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value


def _decode(value: dict) -> Any:
    if set(value) == {"__path__"}:
        return Path(value["__path__"])
    if set(value) == {"__settings__", "values"}:
        return _settings_class(value["__settings__"])(**value["values"])
    return value


def _settings_class(kind: str) -> type[Settings]:
    """The class of settings of this name, `module:class`; only those of `lethe.config`."""
    module, _, name = kind.partition(":")
    if not module.startswith("lethe.config."):
        raise LetheError(f"{kind}: no settings of lethe.config")
    settings_class = getattr(importlib.import_module(module), name, None)
    if not isinstance(settings_class, type) or not issubclass(settings_class, Settings):
        raise LetheError(f"{kind}: no settings")
    return settings_class


def _function(script: str, name: str) -> Callable[..., None]:
    spec = importlib.util.spec_from_file_location(Path(script).stem, script)
    if spec is None or spec.loader is None:
        raise LetheError(f"{script}: not a Python script")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)
