"""Output that all verbs share: JSON for programs, and errors as one line."""

import json
import sys
from typing import Any

from lethe.errors import LetheError, error_message


def print_json(value: Any) -> None:
    """Prints a value as JSON on stdout; NaN, which JSON does not have, becomes null."""
    print(json.dumps(_without_nan(value), indent=1, sort_keys=True))


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(entry) for entry in value]
    if isinstance(value, float) and value != value:
        return None
    return value


def print_error(error: LetheError) -> None:
    """Prints an error on stderr without a traceback."""
    print(error_message(error), file=sys.stderr)
