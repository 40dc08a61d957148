"""The pages of the small study in headless Chromium: one file each, offline, every image loads, no console error."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from playwright.sync_api import Page
from tree import Tree

from browser import opened, require_chromium

CATEGORIES = ["Cost", "Curves", "Masks", "Overview", "Samples", "Training"]
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
    require_chromium()
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


def test_the_page_of_the_study_opens_offline(finished: tuple[Tree, str], tmp_path: Path) -> None:
    """What it shows is tested in tests/test_index_page.py."""
    require_chromium()
    page_file = tmp_path / "index.html"
    shutil.copy2(finished[0].root / "results/index.html", page_file)
    with opened(page_file, messages=()) as (page, wrong):
        assert page.locator(".answer").count() == 2  # a task, two erasers
        assert page.locator("#x-rows img").count() == 3 * page.locator("#x-rows > li").count() > 0
    assert wrong == []
