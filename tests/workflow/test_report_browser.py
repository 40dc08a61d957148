"""The report of the small study in headless Chromium: one file, offline, every image loads, no error on the console."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import ConsoleMessage, Page, Request, sync_playwright
from tree import Tree

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
CATEGORIES = ["Cost", "Curves", "Masks", "Overview", "Samples", "Training"]
LOCAL = ("file:", "data:", "blob:")
pytestmark = pytest.mark.slow

LOADED = """() => Promise.all(
  Object.entries(results).filter(([, result]) => result.mime_type.startsWith('image/')).map(([name, result]) =>
    new Promise(done => {
      const image = new Image();
      image.onload = () => done([name, image.naturalWidth]);
      image.onerror = () => done([name, 0]);
      image.src = result.data_uri;
    })))"""
SHOWN = """() => Math.max(0, ...[...document.querySelectorAll('img, iframe')]
  .filter(element => /png|html/.test(element.src.slice(0, 60)))
  .map(element => element.tagName === 'IFRAME' ? 1 : element.naturalWidth))"""


@contextmanager
def opened(file: Path) -> Iterator[tuple[Page, list[str]]]:
    """The file in a browser of its own, and what goes wrong: exceptions, console errors, failed and foreign loads."""
    wrong: list[str] = []

    def on_console(message: ConsoleMessage) -> None:
        if message.type in ("error", "assert"):
            wrong.append(message.text)

    def on_request(request: Request) -> None:
        if not request.url.startswith(LOCAL):
            wrong.append(f"fetched {request.url}")

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1600, "height": 1000})
        page.on("console", on_console)
        page.on("request", on_request)
        page.on("requestfailed", lambda request: wrong.append(f"failed {request.url}"))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(file.as_uri())
        yield page, wrong
        browser.close()


def first_picture(page: Page, category: str) -> int:
    """Width in pixels of the first picture of a category, 1 for a page; the menu is as before afterwards."""
    page.get_by_role("link", name=category, exact=True).click()
    page.locator("td a").first.click()
    page.wait_for_function(f"({SHOWN})() > 0")
    width = page.evaluate(SHOWN)
    page.reload()
    page.get_by_role("link", name=category, exact=True).wait_for()
    return width


def test_report_opens_offline_and_every_image_loads(finished: tuple[Tree, str], tmp_path: Path) -> None:
    if CHROMIUM is None:
        assert "RESURGENCE_CI" not in os.environ, "no Chromium is installed"
        pytest.skip("no Chromium here; .ci/run installs it")
    results, report = finished[0].root / "results", tmp_path / "report.html"
    shutil.copy2(results / "report.html", report)  # alone: nothing beside it may be needed
    with opened(report) as (page, wrong):
        widths = dict(page.evaluate(LOADED))
        shown = {category: first_picture(page, category) for category in CATEGORIES}
    assert wrong == []
    pictures = {path.name for folder in ("figures", "grids", "cost") for path in (results / folder).rglob("*.png")}
    assert {Path(name).name for name in widths} == pictures
    assert all(0 < width <= 1600 for width in widths.values()), widths
    assert min(shown.values()) > 0
