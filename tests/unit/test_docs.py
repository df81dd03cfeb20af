"""README and docs: snippets print what they show; links, files and names exist."""

import ast
import contextlib
import importlib
import io
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import TypeAdapter

import lethe
from lethe.config.schema import Experiment

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    ROOT / "results/README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
# Pages that the build of the site makes.
GENERATED = ("docs/_generated", "docs/reference/api/", "docs/_build")
PAGES = [path for path in PAGES if not path.relative_to(ROOT).as_posix().startswith(GENERATED)]
TUTORIAL = ROOT / "docs/explanation/completion.md"

each_page = pytest.mark.parametrize(
    "page", PAGES, ids=[path.relative_to(ROOT).as_posix() for path in PAGES]
)


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a page in this language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text("utf-8"), re.M | re.S)


def snippets_with_output(page: Path) -> list[tuple[str, str]]:
    """Python blocks that a block of text follows, and that text: the output to expect."""
    pattern = r"^```python\n(.*?)^```\n\n```text\n(.*?)^```$"
    return re.findall(pattern, page.read_text("utf-8"), re.M | re.S)


def run_in_order(snippets: list[tuple[str, str]]) -> tuple[str, dict]:
    """Everything that the snippets of a page print, and the names that they leave."""
    names: dict = {}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        for code, _ in snippets:
            exec(compile(code, "snippet", "exec"), names)
    return printed.getvalue(), names


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if snippets_with_output(page)],
    ids=lambda page: page.relative_to(ROOT).as_posix(),
)
def test_a_snippet_prints_the_output_that_the_page_shows(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    snippets = snippets_with_output(page)
    printed, _ = run_in_order(snippets)
    assert printed == "".join(output for _, output in snippets)


def test_the_example_of_the_guide_runs_and_predicts_within_its_error_bars():
    _, names = run_in_order(snippets_with_output(TUTORIAL))
    hidden, new = names["hidden"], names["new"]
    error = (names["predicted"] - new)[hidden]
    assert (error**2).mean() < 0.25 * new[hidden].var()
    assert 0.8 < ((names["low"] <= new) & (new <= names["high"])).mean() < 1


@each_page
def test_every_name_that_a_snippet_imports_exists(page):
    for code in blocks(page, "python"):
        imported: dict[str, Any] = {"lethe": lethe}
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("lethe"):
                module = importlib.import_module(node.module)
                for alias in node.names:
                    if not hasattr(module, alias.name):
                        importlib.import_module(f"{node.module}.{alias.name}")
                    imported[alias.name] = getattr(module, alias.name)
            # A method of an instance cannot be looked up without running the snippet.
            if isinstance(node, ast.Attribute) and getattr(node.value, "id", None) in imported:
                assert hasattr(imported[node.value.id], node.attr), f"{node.value.id}.{node.attr}"


@each_page
def test_a_name_of_the_library_in_the_text_exists(page):
    for name in sorted(set(re.findall(r"`(lethe(?:\.\w+)+)", page.read_text("utf-8")))):
        parts = name.split(".")
        value = lethe
        for position, part in enumerate(parts[1:], start=2):
            if not hasattr(value, part):
                importlib.import_module(".".join(parts[:position]))
            value = getattr(value, part)


@each_page
def test_a_section_of_an_experiment_is_valid(page):
    for block in blocks(page, "yaml"):
        for key, value in yaml.safe_load(block).items():
            if key in Experiment.model_fields:
                TypeAdapter(Experiment.model_fields[key].annotation).validate_python(value)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site make them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings}


@each_page
def test_a_link_leads_to_a_file_and_a_heading(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.M | re.S)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith(("http:", "https:")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link}: {target} does not exist"
        if anchor:
            assert anchor in anchors(target), f"{link}: no such heading"


@each_page
def test_a_file_of_the_repository_in_the_text_exists(page):
    """Names like `rules/slurm.smk`; results of runs and places on other machines are not there."""
    folders = "docs|rules|src|tests|experiments|workflow_scripts|benchmarks|profiles|schemas|envs"
    pattern = rf"`((?:{folders})/[\w./-]+\.\w+)`"
    for name in re.findall(pattern, page.read_text("utf-8")):
        assert (ROOT / name).exists(), name


def test_the_citation_names_this_version_and_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["version"] == lethe.__version__
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors", "license"} <= set(citation)
    assert citation["preferred-citation"]["identifiers"][0]["value"] == "arXiv:2406.14026"


def test_a_page_that_another_file_names_exists():
    """In comments of experiments, descriptions of settings and docstrings."""
    folders = ("src", "experiments", "rules", "profiles", "schemas", "workflow_scripts", "report")
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    for path in [*paths, ROOT / "config.yaml", ROOT / "Snakefile", ROOT / "Makefile"]:
        if path.suffix in (".pyc", ".npy", ".parquet"):
            continue
        for page in re.findall(r"docs/[\w/-]+\.md", path.read_text("utf-8")):
            assert (ROOT / page).exists(), f"{path}: {page}"
