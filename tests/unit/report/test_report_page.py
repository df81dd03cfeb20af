import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from helpers import found

from lethe.report import report_page

SETTINGS = {"experiment": "tiny", "note": found.SCRIPT}
PNG = b"\x89PNG not really"


@pytest.fixture(scope="module")
def findings(tmp_path_factory):
    return found.read(tmp_path_factory.mktemp("findings"))


@pytest.fixture(scope="module")
def page(findings):
    return report_page.page(findings, {"heatmap": PNG, "replay": PNG}, SETTINGS)


class Elements(HTMLParser):
    """Collects tags with attributes, and checks that they are closed in their order."""

    def __init__(self, page: str):
        super().__init__()
        self.found, self.open = [], []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_texts_names_and_settings_are_escaped(findings, page):
    tags = {tag for tag, _ in Elements(page).found}
    assert "script" not in tags
    assert "b" not in tags
    assert page.count("&lt;script&gt;") > 8
    assert "&lt;b&gt;m&lt;/b&gt;" in page


def test_names_of_models_tasks_and_groups_are_escaped(findings):
    name = '"><script>'
    z = replace(found.z(), tasks=[name, *list(found.TASKS)[1:]])
    tables = {
        key: {name: getattr(findings, key)["one"]}
        for key in ("curves", "completions", "summaries", "comparisons", "runs")
    }
    tables["summaries"] = {name: findings.summaries["one"].assign(task=name, group=name)}
    marked = replace(findings, matrices={name: z}, **tables)
    page = report_page.page(marked, {}, {"experiment": name})
    assert "script" not in {tag for tag, _ in Elements(page).found}
    assert page.count("&gt;&lt;script&gt;") > 8


def test_the_page_needs_nothing_but_itself(page):
    for tag, attributes in Elements(page).found:
        assert tag not in ("link", "iframe", "object", "embed", "base")
        for key in ("src", "href", "srcset", "action", "data", "poster"):
            if key in attributes:
                assert attributes[key].startswith(("#", "data:image/png;base64,"))
        assert not [key for key in attributes if key.startswith("on")]
    assert not re.search(r"url\(|@import", page)


def test_links_within_the_page_lead_somewhere(page):
    elements = Elements(page).found
    ids = {attributes["id"] for _, attributes in elements if "id" in attributes}
    links = {attributes["href"][1:] for _, attributes in elements if "href" in attributes}
    assert links <= ids


def test_every_fine_tune_and_strategy_is_on_the_page(page):
    for text in ("<td>007</td>", "<td>null</td>", "oracle", "matrix factorisation", "no replay"):
        assert text in page


def test_the_same_findings_give_the_same_page(findings, page):
    assert report_page.page(findings, {"heatmap": PNG, "replay": PNG}, SETTINGS) == page


def test_a_matrix_of_ones_own_has_a_page_without_fine_tunes(tmp_path):
    own = found.read(tmp_path, ("own",), own=True)
    page = report_page.page(own, {}, {"experiment": "own"})
    Elements(page)
    assert "Z was given, not measured" in page
    assert "This experiment has no replay" in page


def test_what_is_not_known_is_a_dash_and_never_a_number(findings):
    assert [report_page._number(value) for value in (float("nan"), np.float32("nan"), None)] == [
        "–"
    ] * 3
    assert report_page._number(0.12345) == "0.123"
    page = report_page.page(findings, {}, SETTINGS)
    assert ">nan<" not in page
    assert "[nan" not in page


def test_a_page_of_one_test_task_has_no_intervals_but_is_there(findings):
    table = findings.comparisons["one"]
    unknown = [key for key in table if key.endswith(("_low", "_high", "_p"))]
    table = table.assign(**dict.fromkeys(unknown, np.nan))
    page = report_page.page(replace(findings, comparisons={"one": table}), {}, SETTINGS)
    assert "too few tasks tell" in page
    assert "(no interval)" in page
    assert "nan" not in page.replace("nano", "")


@pytest.fixture
def sentence(findings):
    def told(low, high, p):
        table = findings.comparisons["one"].copy()
        table["heldout_forgetting_difference_low"] = low
        table["heldout_forgetting_difference_high"] = high
        table["heldout_forgetting_difference_p_holm"] = p
        return report_page._replay_sentences("one", table, "nats")[0]

    return told


def test_the_headline_says_no_more_than_the_interval_does(sentence):
    assert "forgets less than random" in sentence(-0.2, -0.1, 0.04)
    assert "forgets more than random" in sentence(0.1, 0.2, 0.04)
    assert "no less or more (within error) than random" in sentence(-0.1, 0.2, 0.04)


@pytest.mark.parametrize("word, ends", [("less", (-0.2, -0.1)), ("more", (0.1, 0.2))])
@pytest.mark.parametrize("p", [0.05, 0.07])
def test_the_headline_says_no_more_than_the_corrected_p_does(sentence, word, ends, p):
    told = sentence(*ends, p)
    assert f"{word}, but not surely once corrected for several strategies, than random" in told
    assert f"p {report_page._number(p)} (Holm)" in told


def test_the_headline_of_two_tasks_which_have_no_p_claims_nothing(sentence):
    assert "an amount that too few tasks tell" in sentence(-0.2, -0.1, np.nan)
    # Equal on every task: no p either, but that is no lack of tasks.
    assert "no less or more (within error) than random" in sentence(0, 0, np.nan)


def test_what_a_reader_should_know_is_said(findings):
    told = " ".join(report_page._problems(findings))
    assert "one: fine-tuning did not lower the own eval loss of ['null']" in told
    assert "one: 1 upstream examples were cut to length" in told
    assert "one: 4 upstream losses could not be measured" in told
    assert "training examples were cut to length in ['007', 'null', 'sums', 'poems']" in told


def test_the_most_forgotten_examples_are_in_order_without_the_unknown(findings):
    z = findings.matrices["one"]
    shown = report_page.most_forgotten(findings)["one"]["sums"]
    row = np.nan_to_num(z.values[2], nan=-np.inf)
    assert [example["id"] for example in shown] == [z.example_ids[i] for i in np.argsort(-row)[:3]]
    assert shown[0]["value"] == pytest.approx(row.max())
    assert shown[0]["text"] and shown[0]["domain"]


def test_examples_of_which_nothing_is_known_are_not_among_the_most_forgotten(findings):
    z = found.z()
    z.values[0, 2:] = np.nan
    shown = report_page.most_forgotten(replace(findings, matrices={"one": z}))["one"]["007"]
    assert len(shown) == 2
