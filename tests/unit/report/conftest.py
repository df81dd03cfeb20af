import pytest
from helpers import findings as tiny_findings

from lethe.report import report_page
from lethe.report.example_browser import choose_shown
from lethe.report.interactive_figures import InteractiveFigures, make_figures


@pytest.fixture(scope="session")
def drawn_figures(tmp_path_factory) -> InteractiveFigures:
    """The interactive figures of the tiny findings."""
    findings = tiny_findings.make_findings(tmp_path_factory.mktemp("drawn"))
    return make_figures(findings, choose_shown(findings), {})


@pytest.fixture
def figures_drawn_before(drawn_figures, monkeypatch):
    """Pages have the interactive figures of the tiny findings; to draw others takes seconds."""
    monkeypatch.setattr(report_page, "make_figures", lambda *_: drawn_figures)
