"""Which values of a record are text, and how they are written.

Text stays as it is. Numbers are written in decimal, as JSON writes them. An object whose only
field is `text` is its text. null is empty. Everything else is refused, because Python would write
it in its own notation: lists (of several accepted answers, too; name one by its position, as in
`{answers.0}`), other objects, bytes, truth values, dates, NaN and infinities.
"""

import math
from decimal import Decimal
from typing import Any

from lethe.errors import LetheError


class NotText(LetheError):
    """A value that is not text; the message names its type and a way out."""


def value_as_text(value: Any) -> str:
    """Writes a value of a record as text, by the rules of this module.

    Raises
    ------
    NotText
        If the value is neither text nor a finite number nor {"text": ...}.
    """
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, dict) and set(value) == {"text"} and isinstance(value["text"], str):
        return value["text"]
    if isinstance(value, int) and not isinstance(value, bool):
        return _digits(value)
    if isinstance(value, float | Decimal):
        if not math.isfinite(value):
            raise NotText(f"holds {value}, which is no number; remove the record or give a value")
        return str(value)
    raise NotText(f"holds {_kind(value)}, but text is wanted{_hint(value)}")


def _digits(number: int) -> str:
    try:
        return str(number)
    except ValueError:
        # Python writes no more than some thousand digits, because it takes too long.
        raise NotText("holds a whole number of thousands of digits; write it as text in the file")


def _kind(value: Any) -> str:
    kinds = {
        "dict": "an object",
        "list": "a list",
        "bool": "a truth value",
        "bytes": "bytes",
    }
    name = type(value).__name__
    return kinds.get(name, f"a value of type {name}")


def _hint(value: Any) -> str:
    if isinstance(value, list):
        return "; name one item by its position, like {field.0}"
    if isinstance(value, dict):
        keys = ", ".join(str(key) for key in list(value)[:8])
        return f"; name a field in it, like {{field.key}} (it has: {keys})"
    return "; write it as text in the file"


def look_up(fields: dict[str, Any], name: str) -> Any:
    """Finds a field by its name, or by a path of names and positions joined by dots.

    A field that has the whole name, dots included, comes first. A path leads only into objects
    and lists of the record, never into attributes.

    Raises
    ------
    KeyError
        If there is no such field.
    """
    if name in fields:
        return fields[name]
    value: Any = fields
    for part in name.split("."):
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            raise KeyError(name)
    return value
