"""Messages about settings: key, allowed values, value seen, and the key that was probably meant."""

import difflib
import reprlib
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, TypeAdapter

from lethe.config import Experiment
from lethe.config.model_settings import Recipe
from lethe.config.settings import MOST, Location, Revision
from lethe.config.task_table import NAME

LOCATION_PATTERN = TypeAdapter(Location).json_schema()["pattern"]
REVISION_PATTERN = TypeAdapter(Revision).json_schema()["pattern"]


def explain(problem: dict[str, Any], within: tuple[str, ...] = ()) -> str:
    """Writes one error of pydantic as one line: key, allowed values, value seen."""
    path = [*within, *(str(part) for part in problem["loc"])]
    # Tags of discriminated unions are part of pydantic's path but not of the user's YAML.
    if path[:1] in (["models"], ["sources"]):
        path[2:3] = []
    key = ".".join(path) or "experiment"
    value = problem.get("input")
    if problem["type"] == "extra_forbidden":
        return f"{key}: no such key (value seen: {shorten(value)}){_suggestion(path)}"
    if problem["type"] == "missing":
        return f"{key}: is missing and has no default"
    context = problem.get("ctx", {})
    if problem["type"].startswith("union_tag"):
        # The key that selects the kind of an entry.
        discriminator = context["discriminator"].strip("'")
        key = f"{key}.{discriminator}"
        value = context.get("tag")
        if value is None:
            return f"{key}: is missing and has no default"
    message = problem["msg"].removeprefix("Value error, ")
    if "expected_tags" in context:
        message = f"must be one of {context['expected_tags']}"
    if context.get("pattern") == NAME.pattern:
        message = "may only hold letters, digits, _ . - and not begin with . or -"
    if context.get("le", 0) == MOST:
        message = f"must be at most {MOST:g}"
    if context.get("pattern") == LOCATION_PATTERN:
        message = "must be a file, folder or id, without control characters"
    if context.get("pattern") == REVISION_PATTERN:
        message = "a revision is a branch, tag or commit: letters, digits, _ . / @ # + -"
    if path[-1:] == ["version"] and "pattern" in context:
        message = "a version is digits and dots, like 1.0.2"
    if value == "none":
        message += "; leave a setting out by writing null"
    return f"{key}: {message} (value seen: {shorten(value)})"


_SHORT = reprlib.Repr()
_SHORT.maxlevel = 3
_SHORT.maxlist = _SHORT.maxdict = 30
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 120


def shorten(value: Any) -> str:
    """Writes a value as at most 120 characters, whatever its size and depth."""
    text = _SHORT.repr(value)
    return text if len(text) <= 120 else text[:117] + "..."


def _suggestion(path: list[str]) -> str:
    if path[0] == "models" and path[-2] == "recipe" and path[-1] in Recipe.model_fields:
        return "; it is set for all models, in the experiment's recipe"
    return suggest(path[-1], sorted(_all_keys(Experiment) - {path[-1]}))


def suggest(word: str, names: Iterable[str]) -> str:
    """The end of a message that suggests the name most like the word, or empty text."""
    matches = difflib.get_close_matches(word, list(names), n=1)
    return f"; did you mean {matches[0]!r}?" if matches else ""


def _all_keys(settings: type[BaseModel]) -> set[str]:
    schema = settings.model_json_schema()
    keys = set(schema["properties"])
    for definition in schema.get("$defs", {}).values():
        keys |= set(definition.get("properties", {}))
    return keys
