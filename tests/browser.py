"""A page in headless Chromium: opened from a file, watched for messages on the console and for requests."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import ConsoleMessage, Page, Request, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
LOCAL = ("file:", "data:", "blob:")


def require_chromium() -> None:
    """Skip a test without a browser, except where .ci/install has installed one."""
    if CHROMIUM is None:
        assert "RESURGENCE_CI" not in os.environ, "no Chromium is installed"
        pytest.skip("no Chromium here; .ci/run installs it")


@contextmanager
def opened(
    file: Path, width: int = 1600, messages: tuple[str, ...] = ("error", "assert"), after: str = ""
) -> Iterator[tuple[Page, list[str]]]:
    """The file in a browser of its own, and what goes wrong: exceptions, console messages, failed and foreign loads.

    `messages`: types that are wrong; empty: all. `after`: what follows the file in the address.
    """
    wrong: list[str] = []

    def on_console(message: ConsoleMessage) -> None:
        if not messages or message.type in messages:
            wrong.append(message.text)

    def on_request(request: Request) -> None:
        if not request.url.startswith(LOCAL):
            wrong.append(f"fetched {request.url}")

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": width, "height": 1000})
        page.set_default_timeout(120_000)  # milliseconds; the default, 30 s, is too short on a busy machine
        page.on("console", on_console)
        page.on("request", on_request)
        page.on("requestfailed", lambda request: wrong.append(f"failed {request.url}"))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(file.as_uri() + after)
        yield page, wrong
        browser.close()
