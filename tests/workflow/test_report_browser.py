"""The report of the small study in headless Chromium: one file, offline, every image loads, no error on the console."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tree import Tree

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
OPTIONS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--remote-debugging-port=0", "--window-size=1600,1000",
]  # fmt: skip
CATEGORIES = ["Cost", "Curves", "Masks", "Overview", "Samples", "Training"]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium here; .ci/run installs it"),
]


class Page:
    """A page of a browser, driven by the DevTools protocol."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket, self.number, self.events = socket, 0, []

    async def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method; events that arrive meanwhile are kept."""
        self.number += 1
        await self.socket.send_json({"id": self.number, "method": method, "params": parameters})
        while True:
            message = await self.socket.receive_json(timeout=120)
            if message.get("id") == self.number:
                assert "error" not in message, message
                return message["result"]
            self.events.append(message)

    async def run(self, code: str) -> Any:
        """The value of an expression in the page."""
        done = await self.send("Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    async def until(self, condition: str, seconds: float = 120) -> None:
        """Wait for a condition."""
        for _ in range(int(seconds * 4)):
            if await self.run(condition):
                return
            await asyncio.sleep(0.25)
        raise AssertionError(f"not within {seconds} s: {condition}")


@asynccontextmanager
async def opened(file: Path, profile: Path) -> AsyncIterator[Page]:
    """The file in a browser of its own."""
    command = [CHROMIUM, *OPTIONS, f"--user-data-dir={profile}", "about:blank"]
    browser = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        host = next(m[1] for line in browser.stderr if (m := re.search(r"listening on ws://([^/]+)/", line)))
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://{host}/json") as reply:
                address = next(t["webSocketDebuggerUrl"] for t in await reply.json() if t["type"] == "page")
            async with session.ws_connect(address, max_msg_size=0) as socket:
                page = Page(socket)
                for domain in ("Page", "Runtime", "Log", "Network"):
                    await page.send(f"{domain}.enable")
                await page.send("Page.navigate", url=file.as_uri())
                await page.until("document.querySelectorAll('a').length > 8")
                yield page
    finally:
        browser.kill()
        browser.wait()


def errors(events: list[dict[str, Any]]) -> list[str]:
    """Exceptions, console errors, failed loads, and anything fetched from elsewhere."""
    found = []
    for event in events:
        method, told = event.get("method"), event.get("params", {})
        bad = method in ("Runtime.exceptionThrown", "Network.loadingFailed")
        bad |= method == "Runtime.consoleAPICalled" and told["type"] in ("error", "assert")
        bad |= method == "Log.entryAdded" and told["entry"]["level"] == "error"
        bad |= method == "Network.requestWillBeSent" and not told["request"]["url"].startswith(
            ("file:", "data:", "blob:")
        )
        if bad:
            found.append(json.dumps(event)[:500])
    return found


LOADED = """Promise.all(Object.entries(results).filter(([, r]) => r.mime_type.startsWith('image/')).map(([name, r]) =>
  new Promise(done => {
    const image = new Image();
    image.onload = () => done([name, image.naturalWidth]);
    image.onerror = () => done([name, 0]);
    image.src = r.data_uri;
  })))"""
SHOWN = "[...document.querySelectorAll('img, iframe')].filter(e => /png|html/.test(e.src.slice(0, 60)))"


def click(text: str) -> str:
    """Click the link of the menu with this text."""
    return f"[...document.querySelectorAll('a')].find(a => a.innerText.trim() === {json.dumps(text)}).click()"


async def look(file: Path, profile: Path) -> tuple[dict[str, int], dict[str, int], list[str]]:
    """Width of every embedded image; of the first picture of each category (1 for a page); errors."""
    async with opened(file, profile) as page:
        widths = dict(await page.run(LOADED))
        shown = {}
        for category in CATEGORIES:
            await page.run(click(category))
            await page.until("document.querySelector('td a') !== null")
            await page.run("document.querySelector('td a').click()")
            await page.until(f"{SHOWN}.some(e => e.tagName === 'IFRAME' || e.naturalWidth > 0)")
            shown[category] = await page.run(f"Math.max(...{SHOWN}.map(e => e.naturalWidth || 1))")
            await page.send("Page.reload")
            await page.until("document.querySelectorAll('a').length > 8 && document.querySelector('td a') === null")
        return widths, shown, errors(page.events)


def test_report_opens_offline_and_every_image_loads(finished: tuple[Tree, str], tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    shutil.copy2(finished[0].root / "results/report.html", report)  # alone: nothing beside it may be needed
    widths, shown, wrong = asyncio.run(look(report, tmp_path / "profile"))
    assert wrong == []
    pictures = [
        path for place in ("figures", "grids", "cost") for path in (finished[0].root / "results" / place).rglob("*.png")
    ]
    assert len(widths) == len(pictures) == 12
    assert all(0 < width <= 1600 for width in widths.values()), widths
    assert set(shown) == set(CATEGORIES) and min(shown.values()) > 0
