"""The captions of figures and tables in Snakemake's own report."""

import re
from pathlib import Path

import pytest

from lethe.report.plots import FIGURES
from lethe.report.report_page import CAPTIONS

ROOT = Path(__file__).parents[3]
CAPTION_FILES = ROOT / "report"


def words(name: str) -> str:
    """The text of a caption, without its line breaks."""
    return " ".join((CAPTION_FILES / "figures" / f"{name}.rst").read_text("utf-8").split())


def test_every_figure_has_a_caption_and_no_caption_is_left_over():
    assert {path.stem for path in (CAPTION_FILES / "figures").iterdir()} == set(FIGURES)


@pytest.mark.parametrize("name", sorted(CAPTIONS))
def test_a_figure_has_the_same_caption_as_on_the_page(name):
    assert words(name) == CAPTIONS[name]


def test_every_table_of_the_rules_has_a_caption():
    captions = {path.stem for path in (CAPTION_FILES / "tables").iterdir()}
    written = set()
    for path in sorted((ROOT / "rules").glob("*.smk")):
        outputs = re.sub(r"(?s)input:.*?output:", "output:", path.read_text("utf-8"))
        written |= set(re.findall(r"/(\w+)\.csv\"", outputs))
    assert written
    assert written <= captions
