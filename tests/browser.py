"""The real browser, and what tests do on the status page."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

CHROMIUM = shutil.which("chromium")
CHROMIUM_ARGUMENTS = (
    *("--no-sandbox", "--disable-gpu", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
WAIT_MS = 60_000

needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="there is no chromium; `make browser` installs it or says how"
)


@contextmanager
def running_browser() -> Iterator[Browser]:
    """Starts the browser; ends it behind the block."""
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(
            executable_path=CHROMIUM, args=list(CHROMIUM_ARGUMENTS)
        )
        yield launched
        launched.close()


@contextmanager
def fresh_context(browser: Browser, **options: Any) -> Iterator[BrowserContext]:
    """A browser that has seen nothing yet.

    Nothing may fail in its tabs, and they may talk to one host alone.

    Args:
        browser: The program.
        **options: Of playwright's `new_context`.
    """
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
    context.set_default_timeout(WAIT_MS)
    expect.set_options(timeout=WAIT_MS)
    complaints: list[str] = []
    hosts: set[str] = set()
    # A status that is no success is news to the page and an error to the console.
    context.on(
        "console",
        lambda line: (
            complaints.append(line.text)
            if line.type in ("error", "warning") and "Failed to load resource" not in line.text
            else None
        ),
    )
    context.on("weberror", lambda found: complaints.append(str(found.error)))
    context.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))
    yield context
    context.close()
    assert complaints == []
    assert len(hosts - {""}) == 1  # about:blank has none


def ask(page: Page, text: str, *, max_tokens: int = 64) -> None:
    """Sends a message, without waiting for the answer."""
    page.get_by_label("max tokens").fill(str(max_tokens))
    page.get_by_label("Message").fill(text)
    page.get_by_label("Message").press("Enter")


def wait_for_answer(page: Page) -> str:
    """The text of the last answer once it is whole."""
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    return page.locator(".assistant .text").last.inner_text()
