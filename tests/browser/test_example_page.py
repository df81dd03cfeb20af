"""The view of one example, with its tokens, in a real browser."""

from dataclasses import replace

import numpy as np
import pytest
from helpers import findings as tiny_findings
from playwright.sync_api import expect

from lethe.data.examples import Example, UpstreamExample
from lethe.matrix.token_files import TokenLosses
from lethe.report.report_page import render_page

pytestmark = pytest.mark.browser
SETTINGS = tiny_findings.SETTINGS
SVG = "<svg onload=\"document.title='broken'\"></svg>"
TOKENS = ["<s>", "<svg", " onload", "=\"document.title='broken'\">", "", "🦜", "\u202e</svg>", "\n"]
BEFORE = [np.nan, 1.0, 2.0, 3.0, 0.5, 0.5, 1.0, 2.0]
RISES = [np.nan, 4.0, -1.0, 0.1, 0.0, 2.0, 0.75, np.nan]
LONG = 3000


def losses(example_id: str, tokens=TOKENS, before=BEFORE, rises=RISES) -> TokenLosses:
    first = np.array(before, dtype=np.float16)
    last = first + np.array(rises, dtype=np.float16)
    return TokenLosses(example_id=example_id, tokens=list(tokens), before=first, after=last)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Folder with reports of an experiment with token losses, of one without, and of a matrix."""
    folder = tmp_path_factory.mktemp("report")
    findings = tiny_findings.make_findings(folder / "tables")
    examples = []
    for number, old in enumerate(findings.upstream):
        text = SVG if number == 0 else f"a plain text, number {number}"
        examples.append(UpstreamExample(old.example_id, old.domain, old.split, Example(text=text)))
    long = losses(
        "a-00003",
        tokens=["word "] * LONG,
        before=[1.0] * LONG,
        rises=np.linspace(-4, 4, LONG),
    )
    one = {
        "sums": [losses("a-00000"), losses("a-00002", rises=[0] * 8)],
        "poems": [losses("a-00000", rises=[0] * 8), long],
    }
    training = {"sums": ["1 + 1 → 2", "<img src=x onerror=\"document.title='broken'\"> → 3"]}
    with_tokens = replace(
        findings, upstream=examples, tokens={"one": one, "two": {}}, training=training
    )
    (folder / "report.html").write_text(render_page(with_tokens, {}, SETTINGS), "utf-8")
    own = tiny_findings.make_findings(folder / "own", imported=True)
    (folder / "own.html").write_text(render_page(own, {}, SETTINGS), "utf-8")
    return folder


def panel(page):
    return page.locator("#browser-example")


def tokens(page):
    return panel(page).locator(".tokens .token")


def test_a_row_of_the_table_leads_to_the_coloured_tokens_of_its_example(open_page):
    page = open_page()
    page.locator("#browser-task").select_option("sums")
    page.locator("input[type=search]").fill("onload")
    page.locator("#browser-table tbody tr").first.click()
    expect(tokens(page)).to_have_count(len(TOKENS))
    assert tokens(page).all_text_contents() == TOKENS
    changes = tokens(page).evaluate_all("spans => spans.map(span => span.dataset.change ?? '')")
    assert changes == ["", "rise", "fall", "rise", "fall", "rise", "rise", ""]
    colours = tokens(page).evaluate_all(
        "spans => spans.map(span => getComputedStyle(span).backgroundColor)"
    )
    # Not scored, a large rise, a large fall and a small rise differ.
    assert len({colours[0], colours[1], colours[2], colours[3]}) == 4
    expect(panel(page)).to_contain_text("<svg +4.00")


def test_pointing_at_a_token_reads_its_losses(open_page):
    page = open_page("report.html#example=a-00000&task=sums&model=one")
    tokens(page).nth(1).hover()
    detail = panel(page).locator(".token-detail")
    expect(detail).to_contain_text("before 1.00, after 5.00, change +4.00 nats")
    expect(detail).to_contain_text("54.6 times less probable")
    tokens(page).nth(2).hover()
    expect(detail).to_contain_text("2.7 times more probable")
    tokens(page).nth(0).hover()
    expect(detail).to_contain_text("not scored")


def test_the_keyboard_moves_from_token_to_token(open_page):
    page = open_page("report.html#example=a-00000&task=sums&model=one")
    tokens(page).first.focus()
    for _ in range(2):
        page.keyboard.press("ArrowRight")
    expect(panel(page).locator(".token-detail")).to_contain_text("“ onload”")
    page.keyboard.press("End")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    expect(panel(page).locator(".token-detail")).to_contain_text("+0.75")
    # All tokens are one stop of the tab key.
    expect(panel(page).locator(".token[tabindex='0']")).to_have_count(1)
    page.keyboard.press("Escape")
    expect(panel(page)).to_be_hidden()


def test_hostile_tokens_and_training_texts_are_text(open_page):
    page = open_page("report.html#example=a-00000&task=sums")
    expect(panel(page).locator("svg, img, script")).to_have_count(0)
    expect(panel(page)).to_contain_text("sums trains on")
    expect(panel(page)).to_contain_text("<img src=x onerror")
    expect(panel(page).locator("blockquote")).to_have_count(3)


def test_a_link_names_example_task_and_model_and_leads_back(open_page):
    page = open_page("report.html#example=a-00000&task=poems&model=one")
    expect(panel(page).locator("h4")).to_have_text("a-00000")
    expect(page.locator("#browser-task")).to_have_value("poems")
    expect(page.locator("#browser-model")).to_have_value("one")
    expect(panel(page)).to_contain_text("fine-tune on poems")
    page.evaluate("location.hash = 'example=a-00002&task=sums&model=one'")
    expect(panel(page).locator("h4")).to_have_text("a-00002")
    page.go_back()
    expect(panel(page).locator("h4")).to_have_text("a-00000")


def test_without_a_task_the_one_that_forgets_the_example_most_is_shown(open_page):
    page = open_page("report.html#example=a-00000")
    values = {}
    for item in panel(page).locator("ol li").all():
        value, task = item.inner_text().split()[:2]
        if "tokens" in item.inner_text():
            values[task] = float(value)
    assert set(values) == {"sums", "poems"}
    largest = max(values, key=values.get)
    expect(panel(page)).to_contain_text(f"fine-tune on {largest}")


def test_examples_and_models_without_token_losses_say_so(open_page):
    page = open_page("report.html#example=a-00001&task=sums")
    expect(tokens(page)).to_have_count(0)
    expect(panel(page)).to_contain_text("2 most forgotten examples of each task")
    expect(panel(page)).to_contain_text("This example has none.")
    page = open_page("report.html#example=a-00003&task=sums&model=one")
    panel(page).get_by_role("link", name="poems").first.click()
    expect(tokens(page)).to_have_count(LONG)
    page = open_page("report.html#example=a-00000&model=two")
    expect(panel(page)).to_contain_text("no token losses")
    page = open_page("report.html#example=nothing")
    expect(panel(page)).to_contain_text("not among those")
    page = open_page("own.html#example=a-00001")
    expect(panel(page).locator("ol li")).to_have_count(len(tiny_findings.TASKS))
    expect(panel(page)).not_to_contain_text("token")


@pytest.mark.parametrize("width", [420, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_tokens_are_legible_on_every_screen(open_page, width, scheme):
    page = open_page(
        "report.html#example=a-00000&task=sums",
        viewport={"width": width, "height": 900},
        color_scheme=scheme,
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    expect(tokens(page).first).to_be_visible()
    columns = (
        panel(page)
        .locator(".example-columns > div")
        .evaluate_all("parts => new Set(parts.map(part => part.getBoundingClientRect().x)).size")
    )
    assert columns == (1 if width == 420 else 2)


def test_on_paper_the_tokens_are_whole_and_coloured(open_page):
    page = open_page("report.html#example=a-00003&task=poems")
    page.emulate_media(media="print")
    box = panel(page).locator(".tokens")
    assert box.evaluate("box => box.scrollHeight <= box.clientHeight + 1")
    adjust = tokens(page).last.evaluate("span => getComputedStyle(span).printColorAdjust")
    assert adjust == "exact"


def click_cell(page, task: str, example: str):
    """Clicks the middle of a cell of the heat map."""
    page.locator("#heat-map-figure").scroll_into_view_if_needed()
    place = page.evaluate(
        """([task, example]) => {
          const root = Bokeh.documents[0].roots()[0];
          const cells = Bokeh.documents[0].get_model_by_name("heat-map-cells").data;
          const [names, examples] = [cells.task[0], cells.example[0]];
          const tasks = new Set(names).size;
          const at = [...names.keys()].find(
            (number) => names[number].startsWith(`${task} (`) && examples[number] === example);
          const width = names.length / tasks;
          const view = Bokeh.index.get_one(root).child_views[0];
          const box = view.canvas_view.el.getBoundingClientRect();
          const frame = view.frame.bbox;
          return {
            x: box.x + frame.left + frame.width * ((at % width) + 0.5) / width,
            y: box.y + frame.top + frame.height * (Math.floor(at / width) + 0.5) / tasks,
          };
        }""",
        [task, example],
    )
    page.mouse.click(place["x"], place["y"])


def test_a_cell_of_the_heat_map_leads_to_its_coloured_tokens(open_page):
    page = open_page(viewport={"width": 1400, "height": 900})
    click_cell(page, "sums", "a-00000")
    expect(panel(page).locator("h4")).to_have_text("a-00000")
    expect(panel(page)).to_contain_text("fine-tune on sums")
    expect(tokens(page)).to_have_count(len(TOKENS))
    expect(tokens(page).nth(1)).to_have_attribute("data-change", "rise")


def test_a_cell_without_tokens_leads_to_those_that_have_them(open_page):
    page = open_page(viewport={"width": 1400, "height": 900})
    click_cell(page, "sums", "a-00001")
    expect(panel(page)).to_contain_text("This example has none.")
    expect(panel(page)).to_contain_text("Examples with token losses in sums: a-00000 a-00002")
    panel(page).get_by_role("link", name="a-00002").first.click()
    expect(tokens(page)).to_have_count(len(TOKENS))
    click_cell(page, "sums", "a-00003")
    panel(page).get_by_role("link", name="poems").first.click()
    expect(tokens(page)).to_have_count(LONG)
