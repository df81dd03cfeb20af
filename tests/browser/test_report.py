"""The report in a real browser: Debian's Chromium, driven by Playwright."""

import io
import itertools
import re
from dataclasses import replace

import matplotlib.image as mpimg
import numpy as np
import pandas as pd
import pytest
from helpers import findings as tiny_findings
from playwright.sync_api import expect

from lethe.data.examples import Example, UpstreamExample, write_upstream
from lethe.report.figure_style import save_figure
from lethe.report.findings import read_findings
from lethe.report.plots import draw_overview
from lethe.report.report_page import render_page

pytestmark = pytest.mark.browser
SETTINGS = tiny_findings.SETTINGS
LENGTHS = "quotes => quotes.map(quote => quote.textContent.length)"
SVG = "<svg onload=\"document.title='broken'\"><script>document.title='broken'</script></svg>"
TEXTS = [
    SVG,
    "</script><img src=x onerror=\"document.title='broken'\">",
    "\u202egnirts desrever\u202c and 🦜🦜",
]
LARGE = "</script><svg><img src=x> \u202enever\u202c 🦜 " * 130_000

# What the verdict has a sentence on.
PLANNED = [
    tiny_findings.contrast(question="replay", run="random", reference="none"),
    tiny_findings.contrast(question="default"),
    tiny_findings.contrast(question="default", measure="eval_loss_after"),
]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Folder with the reports of a measured and of an imported experiment."""
    folder = tmp_path_factory.mktemp("report")
    tables = tiny_findings.write_tables(folder / "tables")
    examples = []
    for number in range(12):
        text = TEXTS[number] if number < len(TEXTS) else f"a plain text, number {number}"
        domain = "<i>odd</i>" if number % 2 else "news"
        example = Example(text=text)
        examples.append(UpstreamExample(f"a-{number:05d}", domain, "heldout", example))
    write_upstream(folder / "tables/upstream.parquet", examples)
    findings = read_findings(tables, ("one", "two"), tiny_findings.TASKS)
    (folder / "report.html").write_text(render_page(findings, {}, SETTINGS), "utf-8")
    examples[3] = replace(examples[3], example=Example(text=LARGE))
    large = replace(findings, upstream=examples)
    (folder / "large.html").write_text(render_page(large, {}, SETTINGS), "utf-8")
    planned = pd.DataFrame(PLANNED)
    judged = replace(findings, contrasts={"one": planned, "two": planned})
    save_figure(draw_overview(judged), folder / "overview.png")
    overview = {"overview": (folder / "overview.png").read_bytes()}
    (folder / "judged.html").write_text(render_page(judged, overview, SETTINGS), "utf-8")
    own = tiny_findings.make_findings(folder / "own", imported=True)
    (folder / "own.html").write_text(render_page(own, {}, SETTINGS), "utf-8")
    return folder


def wait_until(page, condition: str):
    """Waits for a condition in JavaScript; the page's policy forbids Playwright's own way."""
    for _ in range(200):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(100)
    raise AssertionError(f"still false after 20 seconds: {condition}")


def rows(page):
    return page.locator("#browser-table tbody tr")


def test_a_click_on_a_row_shows_the_whole_text_as_text_and_all_tasks(open_page):
    page = open_page()
    page.locator("input[type=search]").fill("onload")
    expect(rows(page)).to_have_count(1)
    rows(page).first.click()
    example = page.locator("#browser-example")
    expect(example.locator("blockquote")).to_have_text(SVG)
    expect(example.locator("ol li")).to_have_count(len(tiny_findings.TASKS))
    expect(example.locator("svg, script, img")).to_have_count(0)
    expect(page).to_have_url(re.compile("example=a-00000"))


def test_a_text_of_five_megabytes_full_of_markup_is_shown_as_text(open_page):
    assert len(LARGE.encode()) > 5_000_000
    page = open_page("large.html#example=a-00003")
    example = page.locator("#browser-example")
    expect(example.locator("h4")).to_have_text("a-00003")
    expect(example.locator("blockquote")).to_have_count(1)
    length = example.locator("blockquote").evaluate("quote => [...quote.textContent].length")
    assert length == len(LARGE)
    expect(example.locator("svg, script, img")).to_have_count(0)
    # The lists of forgotten examples have the beginnings of texts, and a link to the whole.
    assert max(page.locator("details blockquote").evaluate_all(LENGTHS)) < 3000


def test_verdicts_and_overview_share_the_first_screen(open_page):
    page = open_page("judged.html", viewport={"width": 1400, "height": 900})
    expect(page.locator(".verdict")).to_have_count(2)
    expect(page.locator(".verdict").first).to_contain_text("The new tasks then end at a loss of")
    overview = page.locator("#overview img").bounding_box()
    assert overview["y"] + overview["height"] <= 900
    assert overview["width"] > 600
    expect(page.get_by_text("on the least favourable task, sums, by")).to_have_count(2)


def test_headings_are_in_order_and_pictures_have_alternative_texts(open_page):
    page = open_page("report.html#example=a-00000")
    levels = page.evaluate(
        "[...document.querySelectorAll('h1, h2, h3, h4, h5, h6')].map(one => +one.tagName[1])"
    )
    assert levels[0] == 1 and levels.count(1) == 1
    steps = [after - before for before, after in itertools.pairwise(levels)]
    assert max(steps) == 1
    texts = page.locator("img").evaluate_all("images => images.map(image => image.alt)")
    assert all(texts)


def test_the_focus_can_be_seen(open_page):
    page = open_page()
    for element in ("nav a", "summary", "#browser-task", "#browser-section .scroll"):
        target = page.locator(element).first
        target.focus()
        # A focus that comes from a script is visible only after a key was pressed.
        page.keyboard.press("Shift")
        style = target.evaluate("one => getComputedStyle(one).outlineStyle")
        assert style != "none", element


def test_rows_are_sorted_and_filtered_by_task_domain_and_threshold(open_page):
    page = open_page()
    page.locator("#browser-task").select_option("sums")
    values = [float(text) for text in page.locator("td.number:nth-child(4)").all_inner_texts()[:9]]
    assert values == sorted(values, reverse=True)
    page.locator("#browser-domain").select_option("<i>odd</i>")
    assert set(page.locator("#browser-table td:nth-child(2)").all_inner_texts()) == {"<i>odd</i>"}
    least = values[3]
    page.locator("#browser-least").fill(str(least))
    page.locator("#browser-least").press("Enter")
    shown = [float(text) for text in page.locator("td.number:nth-child(4)").all_inner_texts()]
    assert shown and min(shown) >= least


def test_the_address_leads_back_to_the_same_view(open_page):
    page = open_page()
    page.locator("#browser-model").select_option("two")
    page.locator("#browser-task").select_option("poems")
    rows(page).nth(1).click()
    expect(page).to_have_url(re.compile("task=poems&example="))
    address = page.url
    text = page.locator("#browser-example").inner_text()
    again = open_page("report.html" + address[address.index("#") :])
    expect(again.locator("#browser-example")).to_have_text(text, use_inner_text=True)
    expect(again.locator("#browser-task")).to_have_value("poems")
    again.locator("#browser-example ul a").first.click()
    expect(again.locator("#browser-example")).not_to_have_text(text, use_inner_text=True)


def test_the_keyboard_searches_moves_and_closes(open_page):
    page = open_page()
    page.keyboard.press("/")
    page.keyboard.type('"number 7"')
    expect(rows(page)).to_have_count(1)
    page.keyboard.press("Escape")
    page.locator("#browser-section .scroll").focus()
    page.keyboard.press("ArrowDown")
    expect(page.locator("#browser-example h4")).to_have_text("a-00007")
    page.keyboard.press("Escape")
    expect(page.locator("#browser-example")).to_be_hidden()


@pytest.mark.parametrize("width", [420, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_the_screen(open_page, width, scheme):
    page = open_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    rows(page).first.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    colours = page.evaluate(
        "[getComputedStyle(document.querySelector('#browser-table tbody td')).color,"
        " getComputedStyle(document.body).backgroundColor]"
    )
    light, dark = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in colours]
    assert (light > dark + 200) if scheme == "dark" else (dark > light + 200)


def test_on_paper_every_fold_is_open_and_the_table_whole(open_page):
    page = open_page()
    page.emulate_media(media="print")
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    expect(rows(page)).to_have_count(12)
    heights = page.evaluate(
        "[...document.querySelectorAll('details > :not(summary)')].map(e => e.offsetHeight)"
    )
    assert heights and min(heights) > 0


def test_an_own_matrix_has_the_same_browser_without_texts(open_page):
    page = open_page("own.html")
    expect(rows(page)).to_have_count(12)
    rows(page).first.click()
    expect(page.locator("#browser-example blockquote")).to_have_count(0)
    expect(page.locator("#browser-example ol li")).to_have_count(len(tiny_findings.TASKS))


def cell(page, row: int, column: int):
    """Where the middle of a cell of the heat map is on the screen, and its frame."""
    page.locator("#heat-map-figure").scroll_into_view_if_needed()
    frame = page.evaluate(
        """() => {
          const view = Bokeh.index.roots[0].child_views[0];
          const box = view.canvas_view.el.getBoundingClientRect();
          const { left, top, width, height } = view.frame.bbox;
          return { x: box.x + left, y: box.y + top, width, height };
        }"""
    )
    tasks = len(tiny_findings.TASKS)
    return (
        frame["x"] + frame["width"] * (column + 0.5) / 12,
        frame["y"] + frame["height"] * (row + 0.5) / tasks,
    )


def tooltip(page, row: int, column: int) -> str:
    """The text of the tooltip of a cell of the heat map."""
    page.mouse.move(0, 0)
    page.locator(".bk-Tooltip").first.wait_for(state="hidden")
    page.mouse.move(*cell(page, row, column))
    tip = page.locator(".bk-Tooltip").first
    tip.wait_for(state="visible")
    page.wait_for_timeout(50)
    return tip.evaluate(
        """element => [...element.shadowRoot.querySelectorAll(":not(style)")]
          .filter(part => part.children.length === 0).map(part => part.textContent).join(" ")"""
    )


def test_a_cell_names_its_task_example_and_values_and_a_click_opens_the_example(open_page):
    page = open_page(viewport={"width": 1400, "height": 900})
    text = tooltip(page, row=1, column=2)
    assert "sums (NA, test)" in text
    assert re.search(r"forgetting:?\s+-?0\.\d{3}", text)
    example = re.search(r"a-\d{5}", text)[0]
    page.mouse.click(*cell(page, row=1, column=2))
    expect(page.locator("#browser-example h4")).to_have_text(example)
    expect(page.locator("#browser-task")).to_have_value("sums")
    expect(page).to_have_url(re.compile(f"example={example}&task=sums"))


def test_the_heat_map_is_ordered_and_the_order_is_the_same_for_both_models(open_page):
    examples = []
    for model in ("one", "two"):
        page = open_page(viewport={"width": 1400, "height": 900})
        for control, value in (("columns", "mean"), ("rows", "mean"), ("model", model)):
            page.locator(f"#heat-map-{control}").select_option(value)
        text = tooltip(page, row=0, column=1)
        examples.append(re.search(r"a-\d{5}", text)[0])
        page.mouse.click(*cell(page, row=0, column=1))
        expect(page).to_have_url(re.compile(f"model={model}"))
    assert examples[0] == examples[1]


def test_measured_predicted_and_residual_are_drawn_one_below_the_other(open_page):
    page = open_page(viewport={"width": 1400, "height": 900})
    height = page.locator("#heat-map-figure").bounding_box()["height"]
    page.locator("#heat-map-view").select_option("all")
    wait_until(page, f"document.getElementById('heat-map-figure').offsetHeight > {2.9 * height}")
    page.locator("#heat-map-view").select_option("residual")
    wait_until(page, f"document.getElementById('heat-map-figure').offsetHeight < {1.1 * height}")


def test_a_drag_zooms_into_all_views_and_names_the_examples(open_page):
    page = open_page(viewport={"width": 1400, "height": 900})
    start = cell(page, row=0, column=2)
    end = cell(page, row=3, column=7)
    page.mouse.move(*start)
    page.mouse.down()
    for share in (0.2, 0.4, 0.6, 0.8, 1.0):
        # A busy machine needs a moment to see a drag in the moves.
        page.wait_for_timeout(50)
        page.mouse.move(*(a + share * (b - a) for a, b in zip(start, end, strict=True)))
    page.wait_for_timeout(50)
    page.mouse.up()
    wait_until(
        page,
        "(range => range.end - range.start < 7)"
        "(Bokeh.documents[0].get_model_by_name('heat-map-columns'))",
    )


def test_hostile_texts_are_text_in_tooltips(open_page):
    page = open_page(viewport={"width": 1400, "height": 900})
    texts = []
    for column in range(12):
        texts.append(tooltip(page, row=2, column=column))
    assert any("<svg onload" in text for text in texts)
    assert any("<i>odd</i>" in text for text in texts)
    expect(page.locator(".bk-Tooltip img, .bk-Tooltip script, .bk-Tooltip i")).to_have_count(0)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("media", ["screen", "print"])
def test_figures_are_not_blank(open_page, scheme, media):
    page = open_page(viewport={"width": 1400, "height": 900}, color_scheme=scheme)
    page.emulate_media(media=media, color_scheme=scheme)
    for figure in page.locator(".interactive").all():
        figure.scroll_into_view_if_needed()
        pixels = mpimg.imread(io.BytesIO(figure.screenshot()))
        assert len(np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0)) > 50


def test_an_own_matrix_has_the_same_heat_map(open_page):
    page = open_page("own.html", viewport={"width": 1400, "height": 900})
    assert "prediction" in tooltip(page, row=0, column=0)
    page.mouse.click(*cell(page, row=0, column=0))
    page.wait_for_selector("#browser-example h4")


def test_the_points_of_prediction_and_replay_are_read_and_opened(open_page):
    page = open_page(viewport={"width": 1400, "height": 900})
    page.locator("#agreement-task").select_option("poems")
    page.locator("#agreement-figure").scroll_into_view_if_needed()
    point = page.evaluate(
        """() => {
          const [document] = Bokeh.documents.filter(
            (one) => one.get_model_by_name("agreement-cells"));
          const { data } = document.get_model_by_name("agreement-cells");
          const view = Bokeh.index.get_one(document.roots()[0]);
          const box = view.canvas_view.el.getBoundingClientRect();
          const { xscale, yscale } = view.frame.x_scale ? { xscale: view.frame.x_scale,
            yscale: view.frame.y_scale } : {};
          return { x: box.x + xscale.compute(data.measured[0]),
            y: box.y + yscale.compute(data.predicted[0]), example: data.example[0] };
        }"""
    )
    page.mouse.click(point["x"], point["y"])
    expect(page).to_have_url(re.compile("example=.*&task=poems"))
    expect(page.locator("#browser-example h4")).to_have_count(1)
    expect(page.locator("#replay-0-figure")).to_have_count(1)
    expect(page.locator("#prediction-1-figure canvas").first).to_be_attached()
