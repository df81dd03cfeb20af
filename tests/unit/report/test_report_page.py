import base64
import hashlib
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from urllib.parse import parse_qsl

import numpy as np
import pandas as pd
import pytest
from helpers import findings as tiny_findings
from PIL import Image

from lethe.config.task_table import Task
from lethe.replay.frontier import compare_at_equal_loss
from lethe.report import figure_style, plots, report_page

SETTINGS = tiny_findings.SETTINGS | {"note": tiny_findings.SCRIPT}


def _png() -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


PNG = _png()


@pytest.fixture(scope="module")
def findings(tmp_path_factory):
    return tiny_findings.make_findings(tmp_path_factory.mktemp("findings"))


@pytest.fixture(scope="module")
def page(findings):
    return report_page.render_page(findings, {"overview": PNG, "spectrum": PNG}, SETTINGS)


class Elements(HTMLParser):
    """Collects tags with attributes, and checks that they are closed in their order."""

    def __init__(self, page: str):
        super().__init__()
        self.tags = []
        self.open = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "br", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


# Data and scripts of the example browser and of the figures.
OWN_SCRIPTS = [
    {"type": "application/json", "id": "browser-data"},
    {"type": "module"},
    {"type": "application/json", "id": "figure-data"},
    {},
    {"type": "module"},
]


def scripts(page: str) -> list[dict]:
    """The attributes of all script elements."""
    return [attributes for tag, attributes in Elements(page).tags if tag == "script"]


def test_texts_names_and_settings_are_escaped(findings, page):
    assert scripts(page) == OWN_SCRIPTS
    assert "b" not in {tag for tag, _ in Elements(page).tags}
    assert page.count("&lt;script&gt;") > 8
    assert "&lt;b&gt;m&lt;/b&gt;" in page


def test_names_of_models_tasks_and_groups_are_escaped(findings):
    name = '"><script>'
    z = replace(tiny_findings.z(), tasks=[name, *list(tiny_findings.TASKS)[1:]])
    tables = {
        key: {name: getattr(findings, key)["one"]}
        for key in ("curves", "completions", "summaries", "comparisons", "runs")
    }
    tables["summaries"] = {name: findings.summaries["one"].assign(task=name, group=name)}
    tasks = findings.tasks | {name: Task(name=name, group=name, split="test")}
    marked = replace(findings, tasks=tasks, matrices={name: z}, **tables)
    page = report_page.render_page(marked, {}, SETTINGS | {"experiment": name})
    assert scripts(page) == OWN_SCRIPTS
    assert page.count("&gt;&lt;script&gt;") > 8


def test_the_page_needs_nothing_but_itself(page):
    for tag, attributes in Elements(page).tags:
        assert tag not in ("link", "iframe", "object", "embed", "base")
        for key in ("src", "href", "srcset", "action", "data", "poster"):
            if key in attributes:
                assert attributes[key].startswith(("#", "data:image/webp;base64,"))
        assert not [key for key in attributes if key.startswith("on")]
    for style in re.findall("<style>(.*?)</style>", page, re.S):
        assert "@import" not in style
        assert not re.search(r"url\((?!.?data:)", style)
    policy = page.split("script-src ", 1)[1].split('"')[0].split()
    hashes = []
    for script in re.findall(r'<script(?: type="module")?>(.*?)</script>', page, re.S):
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        hashes.append(f"'sha256-{digest}'")
    assert len(hashes) == 3
    assert policy == hashes


def test_links_within_the_page_lead_somewhere(page):
    elements = Elements(page).tags
    ids = {attributes["id"] for _, attributes in elements if "id" in attributes}
    links = {attributes["href"][1:] for _, attributes in elements if "href" in attributes}
    # Addresses of the example browser name examples, tasks and models; the others name elements.
    addresses = {link for link in links if "=" in link}
    assert links - addresses <= ids
    names = {"browser", "one", "two", tiny_findings.SCRIPT, *tiny_findings.TASKS}
    names |= {example.example_id for example in tiny_findings.upstream()}
    assert addresses
    for address in addresses:
        assert {value for _, value in parse_qsl(address)} <= names


def test_every_fine_tune_and_strategy_is_on_the_page(page):
    for text in ("<td>007</td>", "<td>null</td>", "oracle", "matrix factorisation", "no replay"):
        assert text in page


def test_the_same_findings_give_the_same_page(findings, page):
    assert report_page.render_page(findings, {"overview": PNG, "spectrum": PNG}, SETTINGS) == page


def test_pictures_lose_nothing(page):
    picture = re.search('src="data:image/webp;base64,([^"]*)"', page)[1]
    shown = Image.open(io.BytesIO(base64.b64decode(picture)))
    np.testing.assert_array_equal(np.asarray(shown), np.asarray(Image.open(io.BytesIO(PNG))))


def test_an_imported_matrix_has_a_page_without_fine_tunes(tmp_path):
    imported = tiny_findings.make_findings(tmp_path, ["own"], imported=True)
    page = report_page.render_page(imported, {}, SETTINGS | {"experiment": "own"})
    Elements(page)
    assert "Z was imported, not measured here" in page
    assert "This experiment has no replay" in page


@pytest.mark.usefixtures("figures_drawn_before")
def test_an_unknown_value_is_a_dash_and_never_a_number(findings):
    assert [
        report_page.format_number(value) for value in (float("nan"), np.float32("nan"), None)
    ] == ["–"] * 3
    assert report_page.format_number(0.12345) == "0.123"
    page = report_page.render_page(findings, {}, SETTINGS)
    assert ">nan<" not in page
    assert "[nan" not in page


@pytest.mark.usefixtures("figures_drawn_before")
def test_a_page_of_one_test_task_has_no_intervals_but_is_there(findings):
    table = findings.comparisons["one"]
    unknown = [key for key in table if key.endswith(("_low", "_high", "_p"))]
    table = table.assign(**dict.fromkeys(unknown, np.nan))
    for tasks in (1, 5):
        comparisons = {"one": table.assign(tasks=tasks)}
        page = report_page.render_page(replace(findings, comparisons=comparisons), {}, SETTINGS)
        text = "task" if tasks == 1 else "tasks"
        assert f"No test possible: only {tasks} test {text} (at least 7 needed)." in page
        assert "nan" not in page.split('<script type="application/json"')[0].replace("nano", "")
    assert "(no interval)" in page


def test_facts_that_could_mislead_are_warnings(findings):
    text = " ".join(report_page.make_warnings(findings))
    assert "one: Fine-tuning did not lower the loss on the task itself for null." in text
    assert "one: 1 upstream examples were cut at scoring.max_tokens" in text
    assert "one: 4 losses of upstream examples could not be measured" in text
    assert "Training examples were cut at recipe.max_tokens in 007, null, sums, poems." in text


def test_the_most_forgotten_examples_are_in_order_without_the_unknown(findings):
    z = findings.matrices["one"]
    shown = report_page.most_forgotten(findings)["one"]["sums"]
    row = np.nan_to_num(z.values[2], nan=-np.inf)
    assert [example["id"] for example in shown] == [z.example_ids[i] for i in np.argsort(-row)[:3]]
    assert shown[0]["value"] == pytest.approx(row.max())
    assert shown[0]["text"] and shown[0]["domain"]


def test_examples_without_values_are_not_among_the_most_forgotten(findings):
    z = tiny_findings.z()
    z.values[0, 2:] = np.nan
    shown = report_page.most_forgotten(replace(findings, matrices={"one": z}))["one"]["007"]
    assert len(shown) == 2


@pytest.mark.usefixtures("figures_drawn_before")
def test_planned_comparisons_and_further_measures_of_replay_are_on_the_page(findings):
    table = findings.comparisons["one"]
    for measure in ("worst_domain_forgetting", "drift"):
        for suffix in ("", "_low", "_high", "_difference", "_difference_low", "_difference_high"):
            table = table.assign(**{f"{measure}{suffix}": 0.123})
        table = table.assign(**{f"{measure}_difference_p_holm": 0.5})
    table = table.assign(strategy=["none", "random", "mf", tiny_findings.SCRIPT])
    table = table.assign(eval_loss_after_largest_difference_task="odes")
    line = tiny_findings.contrast(run=tiny_findings.SCRIPT, largest_difference_task="poems")
    line |= {"two_level_low": -0.987, "two_level_high": -0.012}
    both = replace(findings, comparisons={"one": table}, contrasts={"one": pd.DataFrame([line])})
    page = report_page.render_page(both, {}, SETTINGS)
    assert scripts(page) == OWN_SCRIPTS
    for text in ("one: planned comparisons", "27 of 29 tasks", "worst domain", "drift", "poems"):
        assert text in page
    assert "[-0.987, -0.012]" in page
    assert "<small>odes</small>" in page
    assert "share of rises</th>" not in page
    assert "(exploratory)" in page


def test_runs_with_names_of_their_own_are_drawn(findings, tmp_path):
    table = findings.comparisons["one"].assign(strategy=["none", "random", "my_run", "a$b$"])
    named = replace(findings, comparisons={"one": table})
    for name in ("replay", "overview"):
        figure_style.save_figure(plots.draw_figure(name, named), tmp_path / f"{name}.svg")
        assert "my run" in (tmp_path / f"{name}.svg").read_text()
        assert "a$b$" in (tmp_path / f"{name}.svg").read_text()


def test_rows_of_several_versions_of_lethe_are_a_warning(findings):
    table = findings.summaries["one"]
    for versions in (["0.1.0"] * 4, ["0.1.0", "0.2.0", "0.1.0", "0.2.0"]):
        summaries = {"one": table.assign(lethe_version=versions)}
        text = " ".join(report_page.make_warnings(replace(findings, summaries=summaries)))
        warned = "one: Rows were measured with several versions of lethe: 0.1.0, 0.2.0." in text
        assert warned == (len(set(versions)) > 1)


def replay_records(**losses: tuple[float, float]) -> list[dict]:
    """Records of replay.csv over three tasks: by run, held-out forgetting and new-task loss."""
    records = []
    for run, (forgetting, loss) in losses.items():
        for number, task in enumerate(("a", "b", "c")):
            record = {"strategy": run, "task": task, "seed": 0, "eval_loss_after": loss + number}
            record |= {"heldout_forgetting": forgetting, "worst_domain_forgetting": 2 * forgetting}
            records.append(record)
    return records


@pytest.mark.usefixtures("figures_drawn_before")
def test_runs_are_compared_at_the_same_loss_on_the_new_task(findings):
    script = tiny_findings.SCRIPT
    records = replay_records(
        none=(0.4, 1.0), random=(0.2, 1.4), heavy=(0.1, 1.8), mf=(0.175, 1.4), beyond=(0.05, 3.0)
    )
    lines = compare_at_equal_loss(records, {script: ["none", "random", "heavy"]})
    page = report_page.render_page(
        replace(findings, frontiers={"one": pd.DataFrame(lines)}), {}, SETTINGS
    )
    assert scripts(page) == OWN_SCRIPTS
    assert "one: all runs, compared at the same new-task loss" in page
    assert "<td>0.175</td>\n<td>0.200</td>\n<td>-0.025 <small>[-0.025, -0.025]</small>" in page
    assert "<td>0.350</td>\n<td>0.400</td>" in page
    assert ">nan<" not in page
    assert "difference, task by task" in page and "3 of 3 tasks" in page
    # Tables of an earlier version have no such columns.
    older = pd.DataFrame(lines)
    older = older.drop(columns=[name for name in older if name.startswith("task_")])
    page = report_page.render_page(replace(findings, frontiers={"one": older}), {}, SETTINGS)
    assert "difference, task by task" not in page and "<td>0.175</td>" in page


@pytest.mark.usefixtures("figures_drawn_before")
def test_the_score_of_an_advice_is_a_table_even_if_it_is_negative(findings):
    line = {"trade": 1.0, "reference": "best on average", "tasks": 8, "expected_cost": 0.1}
    line |= {"cost": 0.2, "reference_cost": 0.15, "difference": 0.05, "low": 0.01, "high": 0.09}
    table = pd.DataFrame([line | {"p": 0.03, "tasks_lower": 1, "same_run": 4}])
    page = report_page.render_page(replace(findings, advice={"one": table}), {}, SETTINGS)
    assert "one: advice for each task from the other tasks" in page
    assert "0.050 <small>[0.010, 0.090]</small>" in page


@pytest.mark.usefixtures("figures_drawn_before")
def test_left_out_tasks_are_named_at_the_top_and_in_every_section_of_tables(findings):
    left_out = {"bro<ken": Task(name="bro<ken", group="g", split="train")}
    page = report_page.render_page(findings, {}, SETTINGS, left_out)
    assert "1 task of the task table is" in page and "bro&lt;ken (g, train)." in page
    assert page.count("Without bro&lt;ken, left out of this experiment") == 5
    assert report_page.describe_left_out(left_out) == [
        {"task": "bro<ken", "group": "g", "split": "train"}
    ]
    assert "left out" not in report_page.render_page(findings, {}, SETTINGS)


@pytest.mark.usefixtures("figures_drawn_before")
def test_runs_with_a_router_have_a_table_of_what_they_route(findings, page):
    assert "runs with a memory or router" not in page
    table = findings.comparisons["one"].copy()
    for share in ("heldout_routed", "eval_routed"):
        for end in ("", "_low", "_high"):
            table[f"{share}{end}"] = np.where(table.strategy == "random", 0.25, np.nan)
    table["memory_bytes"] = np.where(table.strategy == "random", 166_656, np.nan)
    routed = replace(findings, comparisons={"one": table})
    text = report_page.render_page(routed, {}, SETTINGS)
    Elements(text)
    part = text[text.index("runs with a memory or router") :].split("</table>")[0]
    assert part.count("<tr>") == 2
    assert "<td>167</td>" in part
    assert "0.250" in part


@pytest.mark.usefixtures("figures_drawn_before")
def test_the_ledger_is_a_table_and_without_one_the_page_says_how_to_make_it(findings, page):
    assert "make ledger" in page
    line = {"model": "<b>m</b>", "rule": "measure_row", "jobs_planned": 29, "jobs": 28}
    line |= {"seconds_planned": 100.0, "seconds": 250.04, "ratio": 2.5}
    line |= {"training_tokens_planned": 1234567, "training_tokens": 1000}
    ledger = pd.DataFrame([line | {"disk_mb_planned": 1.0, "disk_mb": 2.0}])
    text = report_page.render_page(findings, {}, SETTINGS, ledger=ledger)
    assert scripts(text) == OWN_SCRIPTS
    for part in ("<td>28 of 29</td>", "<td>250.0</td>", "1,234,567", "measure_row"):
        assert part in text
    assert "make ledger" not in text
    priced = ledger.assign(money=12.345, money_planned=5.0)
    settings = SETTINGS | {"plan": {"currency": "EUR"}}
    text = report_page.render_page(findings, {}, settings, ledger=priced)
    assert "<th>EUR</th>" in text and "<td>12.35</td><td>5.00</td>" in text


@pytest.mark.usefixtures("figures_drawn_before")
def test_measures_finer_than_loss_have_a_section_only_where_they_were_measured(findings, page):
    assert "Finer than loss" not in page
    lines = [
        {"measure": "forgetting", "statistic": "r2_rank_1", "value": 0.5},
        {"measure": "kl", "statistic": "mean", "value": 0.25, "low": 0.2, "high": 0.3},
        {"measure": "kl", "statistic": "rank_above_shuffled", "value": 4.0},
    ]
    finer = {tiny_findings.SCRIPT: pd.DataFrame(lines)}
    with_section = report_page.render_page(replace(findings, finer=finer), {}, SETTINGS)
    assert scripts(with_section) == OWN_SCRIPTS
    section = with_section.split('<h2 id="finer">')[1].split("<h2")[0]
    assert "KL to the base model" in section
    assert "0.250 <small>[0.200, 0.300]</small>" in section
    assert "<td>4</td>" in section
    assert "<td>0.500</td>" in section


@pytest.mark.usefixtures("figures_drawn_before")
def test_the_section_of_prediction_leads_with_means_and_has_the_precision(findings):
    completions = {}
    for model, table in findings.completions.items():
        completions[model] = pd.concat([pd.DataFrame(tiny_findings.means()), table])
    changed = replace(findings, completions=completions)
    page = report_page.render_page(changed, {"precision": PNG}, SETTINGS)
    section = page[page.index('<h2 id="prediction"') : page.index('<h2 id="replay"')]
    means = section.index("one: mean forgetting of an unseen task")
    precision = section.index('alt="How many probes and training tasks')
    assert means < precision < section.index('id="agreement-section"')
    assert "one: table of precision" in section and section.count("<td>20</td>") == 4
    without = replace(findings, precision={})
    before = report_page.render_page(without, {}, SETTINGS)
    assert "mean forgetting of an unseen task" not in before
    assert "table of precision" not in before
