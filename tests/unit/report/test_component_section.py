from dataclasses import replace

import pytest
from helpers import findings as tiny_findings

from lethe import tables
from lethe.analysis.component_reading import domain_records, find_components, loading_records
from lethe.report.component_section import describe_components
from lethe.report.findings import read_findings
from lethe.report.report_page import render_page

SETTINGS = tiny_findings.SETTINGS


@pytest.fixture
def inputs(tmp_path):
    """The tables of a tiny experiment, with those of its components."""
    written = tiny_findings.write_tables(tmp_path)
    domains = {example.example_id: example.domain for example in tiny_findings.upstream()}
    written |= {"loadings": [], "domain_tests": []}
    for seed, model in enumerate(("one", "two")):
        factors = find_components(tiny_findings.z(seed))
        for kind, lines in (
            ("loadings", loading_records(factors, domains)),
            ("domain_tests", domain_records(factors, domains)),
        ):
            path = tmp_path / f"{model}-{kind}"
            tables.write_csv(path, lines)
            written[kind].append(str(path))
    return written


def test_every_component_has_tasks_and_texts_at_both_ends(inputs):
    findings = read_findings(inputs, ("one", "two"), tiny_findings.TASKS)
    described = describe_components(findings)
    assert list(described) == ["one", "two"]
    assert [component["number"] for component in described["one"]] == [1, 2, 3, 4]
    for component in described["one"]:
        highest, lowest = component["ends"]
        names = [line["name"] for line in highest["tasks"] + lowest["tasks"]]
        # Names that look like numbers or missing values stay names.
        assert sorted(names) == sorted(tiny_findings.TASKS)
        assert len(highest["examples"]) == 5
        assert all(line["text"] for line in highest["examples"])


def test_only_domains_beyond_chance_are_named_the_surest_first(inputs):
    findings = read_findings(inputs, ("one", "two"), tiny_findings.TASKS)
    tests = findings.domain_tests["one"].assign(q=1.0)
    first = (tests.component == 1) & (tests.end == "highest")
    tests.loc[first, "q"] = [0.04, 0.001]
    changed = replace(findings, domain_tests={"one": tests})
    highest, lowest = describe_components(changed)["one"][0]["ends"]
    assert [line["q"] for line in highest["domains"]] == [0.001, 0.04]
    assert lowest["domains"] == []


@pytest.mark.usefixtures("figures_drawn_before")
def test_the_page_links_each_text_and_escapes_it(inputs):
    findings = read_findings(inputs, ("one", "two"), tiny_findings.TASKS)
    page = render_page(findings, {}, SETTINGS)
    assert 'id="components"' in page
    assert "#example=a-00000&amp;model=one" in page
    assert "none is more" in page
    assert tiny_findings.SCRIPT not in page


@pytest.mark.usefixtures("figures_drawn_before")
def test_an_own_matrix_has_components_without_domains(inputs):
    inputs |= {"upstream": [], "domain_tests": []}
    findings = read_findings(inputs, ("one", "two"), tiny_findings.TASKS)
    page = render_page(findings, {}, SETTINGS)
    assert 'id="components"' in page
    assert "Domains:" not in page
    without = render_page(replace(findings, loadings={}), {}, SETTINGS)
    assert 'id="components"' not in without
