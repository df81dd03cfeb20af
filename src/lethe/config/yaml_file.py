"""YAML files with the lines of their keys, so that an error can name where it is."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from lethe.errors import ExperimentError, one_line

# Values of an experiment, anchors written out at each of their uses. The largest experiments of
# experiments/paper hold about a hundred.
MOST_VALUES = 100_000
# YAML 1.1 reads these as octal, and as hours, minutes and seconds.
_AMBIGUOUS = re.compile(r"[-+]?(0[0-7_]*[1-7][0-7_]*|[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?)")


@dataclass(frozen=True)
class YamlFile:
    """A YAML file as a tree of nodes that know their lines.

    Raises
    ------
    ExperimentError
        By `parse`, if the file cannot be read or is not valid YAML, with its name and line.
    """

    path: Path
    root: Node | None

    @classmethod
    def parse(cls, path: Path | str) -> "YamlFile":
        """Parses a file without computing its values."""
        path = Path(path)
        with _errors_named(path):
            root = YAML(typ="safe", pure=True).compose(_text(path))
        return cls(path, root)

    def check_aliases(self) -> None:
        """Checks that no anchor holds itself and that aliases do not multiply without bound.

        Raises
        ------
        ExperimentError
            If one does, with its line.
        """
        sizes = _Sizes()
        count = sizes.of(self.root)
        problems = []
        for line in sizes.cycles:
            problems.append(f"line {line}: an anchor (&name) holds itself; remove its alias")
        if count > MOST_VALUES:
            problems.append(
                f"its aliases (*name) stand for more than {MOST_VALUES:,} values; write the values "
                "out or use fewer aliases"
            )
        if problems:
            raise ExperimentError(str(self.path), problems)

    def line_of(self, key: str) -> int | None:
        """Line of a key such as `models.olmo-0.7m.recipe.lr`, or of its nearest parent.

        Parts of a key are joined by dots and may hold dots themselves. None if not even the first
        part is in the file.
        """
        node = self.root
        rest = key
        line = None
        while rest:
            for name, name_node, value in _children(node):
                if rest == name or rest.startswith(f"{name}."):
                    line = name_node.start_mark.line + 1
                    node = value
                    rest = rest[len(name) + 1 :]
                    break
            else:
                return line
        return line

    def repeated_keys(self) -> Iterator[str]:
        """Describes every key that stands twice in one mapping, with both lines."""
        visited: set[int] = set()
        pending: list[tuple[str, Node | None]] = [("", self.root)]
        while pending:
            path, node = pending.pop(0)
            if node is None or id(node) in visited:
                continue
            visited.add(id(node))
            first_lines: dict[str, int] = {}
            for name, name_node, value in _children(node):
                key = f"{path}.{name}" if path else name
                line = name_node.start_mark.line + 1
                if name in first_lines:
                    first = first_lines[name]
                    yield f"line {line}: {key} stands twice, first on line {first}; name it once"
                first_lines[name] = line
                pending.append((key, value))

    def ambiguous_numbers(self) -> Iterator[str]:
        """Describes every number that YAML 1.1 reads as another one: 010 is 8, and 1:30 is 90."""
        visited: set[int] = set()
        pending: list[Node | None] = [self.root]
        while pending:
            node = pending.pop(0)
            if node is None or id(node) in visited:
                continue
            visited.add(id(node))
            for _, name_node, value in _children(node):
                pending += [name_node, value]
            is_plain = isinstance(node, ScalarNode) and node.style is None
            if is_plain and _AMBIGUOUS.fullmatch(node.value):
                line = node.start_mark.line + 1
                yield (
                    f"line {line}: {node.value} is read as another number (leading zeros mean "
                    "octal, colons base 60); write a plain number, or put it in quotes"
                )


def _children(node: Node | None) -> list[tuple[str, Node, Node]]:
    """Name, node of the name and node of the value of everything directly in a node."""
    children = []
    if isinstance(node, MappingNode):
        for key, value in node.value:
            children.append((str(key.value), key, value))
    elif isinstance(node, SequenceNode):
        for index, item in enumerate(node.value):
            children.append((str(index), item, item))
    return children


class _Sizes:
    """Numbers of values under nodes, aliases written out, and lines of nodes in themselves."""

    def __init__(self) -> None:
        self.cycles: list[int] = []
        self._finished: dict[int, int] = {}
        self._open: set[int] = set()

    def of(self, node: Node | None) -> int:
        if node is None:
            return 0
        if id(node) in self._finished:
            return self._finished[id(node)]
        if id(node) in self._open:
            self.cycles.append(node.start_mark.line + 1)
            return 1
        self._open.add(id(node))
        size = 1
        for _, _, value in _children(node):
            size += self.of(value)
        self._open.remove(id(node))
        self._finished[id(node)] = size
        return size


def read_yaml(path: Path | str) -> Any:
    """Values of a YAML file, read by the rules of YAML 1.1 as Snakemake reads a config file.

    Raises
    ------
    ExperimentError
        If the file is not valid YAML, a key stands twice, an anchor holds itself, or a number is
        read as another one.
    """
    file = YamlFile.parse(path)
    file.check_aliases()
    if problems := [*file.repeated_keys(), *file.ambiguous_numbers()]:
        raise ExperimentError(str(path), problems)
    with _errors_named(file.path):
        return yaml.safe_load(_text(file.path))


def _text(path: Path) -> str:
    # Some editors write a byte order mark first, which is no part of the first key.
    return path.read_text("utf-8-sig")


@contextmanager
def _errors_named(path: Path) -> Iterator[None]:
    """Turns every error of reading a YAML file into one that names the file and the line."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise ExperimentError(str(path), [f"cannot be read ({error}); save it as UTF-8"])
    except OSError as error:
        raise ExperimentError(str(path), [f"cannot be read ({error.strerror}); name a YAML file"])
    except (MarkedYAMLError, yaml.MarkedYAMLError) as error:
        mark = error.problem_mark or error.context_mark
        line = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ExperimentError(str(path), [f"{line}not valid YAML ({error.problem})"])
    except RecursionError:
        raise ExperimentError(str(path), ["holds values nested too deeply; write it flatter"])
    except (YAMLError, yaml.YAMLError, ValueError, TypeError) as error:
        raise ExperimentError(str(path), [f"not valid YAML ({one_line(error)})"])
