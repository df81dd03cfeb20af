"""The house holds: which wing may import which, and no name stands for two things."""

import ast
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIBRARY = ROOT / "src" / "lethe"

# Wing -> the wings it may import. Every wing may import the loose files (errors, files, ...).
MAY_IMPORT = {
    "config": set(),
    "data": {"config"},
    "engine": {"config", "data"},
    "matrix": {"config", "data"},
    "measure": {"config", "data", "engine", "matrix"},
    "completion": {"config", "data", "matrix"},
    "analysis": {"config", "data", "matrix", "completion"},
    "similarity": {"config", "data", "engine", "matrix", "measure"},
    "replay": {"config", "data", "engine", "matrix", "measure", "completion", "analysis"},
    "report": {"config", "data", "matrix", "completion", "analysis", "replay"},
    "cost": {"config", "data", "engine", "matrix", "measure", "replay"},
    "jobs": {"config", "engine"},
    "integrations": {"config", "data", "engine", "matrix", "completion", "replay"},
}
# The command line stands above all wings.
MAY_IMPORT["cli"] = set(MAY_IMPORT)
LOOSE = {"errors", "files", "statistics", "tables", "workflow", "__main__", "__init__"}
# The command and the workflow's paths stand above the wings.
ABOVE = {"__main__", "__init__", "workflow"}


def imported(path: Path) -> set[str]:
    """First parts of what a file imports from lethe: wings and loose files."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "lethe":
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lethe."):
            names.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            names.update(a.name.split(".")[1] for a in node.names if a.name.startswith("lethe."))
    return names


def modules() -> list[Path]:
    return sorted(LIBRARY.rglob("*.py"))


@pytest.mark.parametrize("wing", sorted(MAY_IMPORT))
def test_a_wing_imports_only_the_wings_it_may(wing):
    allowed = MAY_IMPORT[wing] | LOOSE | {wing}
    for path in sorted((LIBRARY / wing).rglob("*.py")):
        assert imported(path) - {"__version__"} <= allowed, path.name


def test_every_folder_is_a_wing_with_a_question_and_every_loose_file_is_known():
    folders = {path.parent.name for path in LIBRARY.glob("*/__init__.py")}
    assert folders <= set(MAY_IMPORT) | ABOVE
    for folder in folders:
        text = ast.get_docstring(ast.parse((LIBRARY / folder / "__init__.py").read_text("utf-8")))
        assert text and "?" in text.splitlines()[0], folder
        assert "import" in text, folder
        if folder != "cli":
            missing = {wing for wing in MAY_IMPORT[folder] if f"`{wing}`" not in text}
            assert not missing, f"{folder}: its first lines do not say that it may import {missing}"
    assert {path.stem for path in LIBRARY.glob("*.py")} <= LOOSE


def test_loose_files_import_no_wing():
    for path in LIBRARY.glob("*.py"):
        if path.stem not in ABOVE:
            assert imported(path) <= LOOSE, path.name


def test_no_two_modules_classes_or_public_functions_share_a_name():
    definitions = defaultdict(set)
    for path in modules():
        place = str(path.relative_to(LIBRARY))
        if path.name == "__init__.py":
            definitions[path.parent.name].add(place)
        else:
            definitions[path.stem].add(place)
        for node in ast.parse(path.read_text("utf-8")).body:
            named = isinstance(node, ast.FunctionDef | ast.ClassDef)
            if named and not node.name.startswith("_") and node.name != "main":
                definitions[node.name].add(place)
    shared = {name: sorted(places) for name, places in definitions.items() if len(places) > 1}
    assert shared == {}
