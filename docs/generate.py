"""Makes the pages of the site that are read off the code: configuration, command line, library.

They are made at every build and not under version control, so that they are never out of date.
"""

import importlib
import json
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import lethe

# The order in which the wings are shown: each imports only those before it.
ORDER = [
    "config",
    "data",
    "engine",
    "matrix",
    "measure",
    "completion",
    "analysis",
    "similarity",
    "replay",
    "report",
    "cost",
    "jobs",
    "integrations",
    "cli",
]


def main(docs: Path) -> None:
    """Writes all generated pages below the folder of the docs."""
    schema = json.loads((docs.parent / "schemas/experiment.schema.json").read_text("utf-8"))
    save(docs / "_generated/configuration.md", configuration(schema))
    save(docs / "_generated/cli.md", command_line())
    names = wings()
    save(docs / "_generated/api.md", contents(names))
    for wing in names:
        save(docs / f"reference/api/{wing}.md", library_page(wing))
    for page in (docs / "reference/api").glob("*.md"):
        if page.stem not in names:  # of a wing that has another name now
            page.unlink()


def wings() -> list[str]:
    """The packages of the library, those without a place in the order last."""
    packages = {module.name for module in pkgutil.iter_modules(lethe.__path__) if module.ispkg}
    listed = [name for name in ORDER if name in packages]
    return listed + sorted(packages - set(listed))


def contents(names: list[str]) -> str:
    """The names that `import lethe` offers, and the list of the wings' pages."""
    lines = ["## The face\n", "`import lethe` offers these names:\n"]
    lines += ["| Name | Defined in |", "|---|---|"]
    for name in sorted(set(lethe.__all__) - {"__version__"}):
        module = getattr(getattr(lethe, name), "__module__", "lethe.completion")
        lines.append(f"| `lethe.{name}` | `{module}` |")
    pages = "\n".join(f"api/{name}" for name in names)
    lines.append(f"\n## The wings\n\n```{{toctree}}\n:maxdepth: 1\n\n{pages}\n```\n")
    return "\n".join(lines)


def save(path: Path, text: str) -> None:
    """Writes a page, if its text changed: Sphinx reads pages again that are newer."""
    if path.exists() and path.read_text("utf-8") == text:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")


def configuration(schema: dict[str, Any]) -> str:
    """A table of the keys of an experiment, and one of each section that it holds."""
    parts = ["## Experiment\n", keys_of(schema)]
    for name, section in schema["$defs"].items():
        where = ", ".join(f"`{key}`" for key in users(schema, name))
        parts += [f"## {name}\n", f"{plain(section.get('description', ''))} Used in {where}.\n"]
        parts.append(keys_of(section))
    return "\n".join(parts)


def users(schema: dict[str, Any], name: str) -> list[str]:
    """The keys that hold a section, such as `recipe`, or `Recipe.lora` of another section."""
    reference = f'"#/$defs/{name}"'
    sections = {"": schema, **{f"{other}.": part for other, part in schema["$defs"].items()}}
    return [
        f"{prefix}{key}"
        for prefix, section in sections.items()
        for key, value in section.get("properties", {}).items()
        if reference in json.dumps(value)
    ]


def keys_of(section: dict[str, Any]) -> str:
    """One line per key: its type, its default and its description."""
    lines = ["| Key | Type | Default | Meaning |", "|---|---|---|---|"]
    for key, value in section.get("properties", {}).items():
        if key in section.get("required", ()):
            default = "required"
        else:
            default = short(value["default"]) if "default" in value else ""
        meaning = plain(value.get("description", ""))
        lines.append(f"| `{key}` | {type_of(value)} | {default} | {meaning} |")
    return "\n".join([*lines, ""])


def type_of(value: dict[str, Any]) -> str:
    """The type of a key in words, with links to sections."""
    if "$ref" in value:
        name = value["$ref"].rsplit("/", 1)[1]
        return f"[{name}](#{name.lower()})"
    if choices := value.get("anyOf") or value.get("oneOf"):
        names = [type_of(choice) for choice in choices]
        return " or ".join(dict.fromkeys(names))
    if "enum" in value:
        return " or ".join(f"`{choice}`" for choice in value["enum"])
    if "const" in value:
        return f"`{value['const']}`"
    kind = value.get("type", "any")
    if kind == "array":
        return f"list of {type_of(value.get('items', {}))}"
    if kind == "object":
        inner = [*value.get("patternProperties", {}).values()]
        if isinstance(value.get("additionalProperties"), dict):
            inner.append(value["additionalProperties"])
        return f"name: {type_of(inner[0])}" if inner else "mapping"
    return {"null": "`null`"}.get(kind, kind) + limits(value)


def limits(value: dict[str, Any]) -> str:
    """The least and the greatest value of a number, in brackets."""
    signs = {
        "minimum": "≥",
        "exclusiveMinimum": "above",
        "maximum": "≤",
        "exclusiveMaximum": "below",
    }
    words = [f"{sign} {value[name]}" for name, sign in signs.items() if name in value]
    return f" ({', '.join(words)})" if words else ""


def short(default: Any) -> str:
    """A default, but for those of whole sections, which have a table of their own."""
    if isinstance(default, dict) and default:
        return "see the section"
    return f"`{json.dumps(default)}`"


def plain(text: str) -> str:
    """Text for a cell of a table, without marks of Markdown or HTML outside of code."""
    parts = text.replace("|", "\\|").replace("\n", " ").split("`")
    parts[::2] = [part.replace("<", "&lt;").replace("*", "\\*") for part in parts[::2]]
    return "`".join(parts)


def command_line() -> str:
    """The help of `lethe` and of each of its verbs, as the terminal shows it."""
    usage = help_of()
    parts = [f"```text\n{usage}```\n"]
    commands = usage.partition("\nCommands:\n")[2]
    for verb in re.findall(r"^  ([\w-]+)", commands, re.M):
        parts.append(f"### lethe {verb}\n\n```text\n{help_of(verb)}```\n")
    return "\n".join(parts)


def help_of(*verbs: str) -> str:
    """The output of `lethe ... --help`."""
    source = Path(lethe.__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": str(source), "COLUMNS": "90"}
    command = [sys.executable, "-m", "lethe", *verbs, "--help"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout


def library_page(wing: str) -> str:
    """The page of a wing: its docstring, then every public module with its public names."""
    package = importlib.import_module(f"lethe.{wing}")
    names = sorted(module.name for module in pkgutil.iter_modules(package.__path__))
    parts = [f"# lethe.{wing}\n", automodule(f"lethe.{wing}", members=False)]
    for name in names:
        parts += [f"## lethe.{wing}.{name}\n", automodule(f"lethe.{wing}.{name}", members=True)]
    return "\n".join(parts)


def automodule(module: str, *, members: bool) -> str:
    """The directive that shows a module's docstrings."""
    options = ":members:\n" if members else ""
    return f"```{{eval-rst}}\n.. automodule:: {module}\n   {options}```\n"
