"""Takes the pictures of the report's main views that the docs show.

    python docs/take_screenshots.py results/default/report.html

It needs Debian's Chromium. It prints the size of each picture.
"""

import argparse
import io
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

WIDTH = 1180


# Name of the picture -> the element that it shows.
VIEWS = {
    "heat-map": "#heat-map-section",
    "prediction": "#prediction-0-section",
    "replay": "#replay-0-section",
    "examples": "#browser-table",
    "example": "#browser-example",
}


def prepare(page: Page, view: str) -> None:
    """Points at a cell of the heat map, or opens the first example of the table."""
    if view == "heat-map":
        figure = page.locator("#heat-map-figure")
        figure.scroll_into_view_if_needed()
        box = figure.bounding_box()
        page.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 0.4 * box["height"])
        page.wait_for_selector(".bk-Tooltip")
    if view == "example":
        page.locator("#browser-table tbody tr").first.click()


def take_screenshots(report: Path, folder: Path) -> None:
    """Writes `report-<view>.png` for each view, and one of the top of the page."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as playwright:
        # As root, Chromium starts without its sandbox only.
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": 900})
        page.set_default_timeout(300_000)
        page.goto(f"file://{report.resolve()}")
        page.wait_for_selector("html[data-figures=ready]")
        save_picture(page.screenshot(), folder / "report-top.png")
        for name, element in VIEWS.items():
            prepare(page, name)
            save_picture(page.locator(element).screenshot(), folder / f"report-{name}.png")
        browser.close()


def save_picture(png: bytes, path: Path) -> None:
    """Writes a picture as a small PNG."""
    Image.open(io.BytesIO(png)).convert("RGB").save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("report", type=Path, help="report.html of a finished run")
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    take_screenshots(arguments.report, arguments.folder)


if __name__ == "__main__":
    main()
