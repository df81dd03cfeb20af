"""Debian's Chromium, driven by Playwright."""

import shutil

import pytest
from playwright.sync_api import expect, sync_playwright

# Milliseconds that an assertion waits for the page, which is slow on a busy machine.
expect.set_options(timeout=20_000)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def chromium():
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    with sync_playwright() as playwright:
        # As root, Chromium starts without its sandbox only.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium, report):
    """Opens a report; afterwards there was no error, no warning and no request."""
    problems = []
    pages = []

    def open_at(address: str = "report.html", **options):
        page = chromium.new_page(**options)
        pages.append(page)
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        requests = []
        page.goto(f"file://{report}/{address}")
        page.wait_for_selector("html[data-browser=ready][data-figures=ready]")
        problems.extend(url for url in requests if not url.startswith(f"file://{report}/"))
        return page

    yield open_at
    for page in pages:
        assert page.title() == "tiny · lethe"
        page.close()
    assert problems == []
