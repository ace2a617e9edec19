"""The page behind a reverse proxy that serves it below a path, in a real browser."""

import pytest
from playwright.sync_api import Page, expect

from coordinator.doors.access.callers import Callers
from tests.browser import ask, needs_chromium, wait_for_answer
from tests.contract.echo_engine import EchoEngine
from tests.contract.http_door import in_background, serving_http
from tests.prefix_proxy import proxied

pytestmark = [pytest.mark.timeout(600), needs_chromium]


def test_the_page_works_below_any_path(page: Page) -> None:
    engine = EchoEngine()
    with (
        in_background(serving_http(engine)) as address,
        proxied("/deep/stagecoach", address) as proxy,
    ):
        page.goto(proxy.url.removesuffix("/"))
        expect(page).to_have_url(proxy.url)
        expect(page.locator("#ready")).to_have_text("ready")
        expect(page.locator(".stages > li")).to_have_count(2)
        icon = page.locator(".top img")
        assert icon.evaluate("(image) => image.complete && image.naturalWidth > 0")
        assert page.evaluate("getComputedStyle(document.querySelector('main')).display") == "grid"
        ask(page, "hello", max_tokens=11)
        assert wait_for_answer(page) == "user: hello"
        page.reload()
        expect(page.locator(".assistant .text")).to_have_text("user: hello")
        outside = [path for path in proxy.asked if not path.startswith("/deep/stagecoach")]
        assert outside == []
        asked = {path.removeprefix("/deep/stagecoach") for path in proxy.asked}
        assert {"/status/stream", "/v1/chat/completions", "/page/icon.svg"} <= asked
        page.goto("about:blank")


def test_two_coordinators_of_one_host_keep_apart(page: Page) -> None:
    """One origin has one storage, and a key is for one of them alone."""
    key = "k" * 32
    keyed = serving_http(EchoEngine(), callers=Callers.of_text(f"alice:{key}"))
    with in_background(keyed) as address, proxied("/one", address) as proxy:
        page.goto(proxy.url)
        page.get_by_label("Key", exact=True).fill(key)
        page.get_by_role("button", name="Use this key").click()
        ask(page, "hello", max_tokens=11)
        wait_for_answer(page)
        proxy.prefix = "/other"
        page.goto(proxy.url)
        expect(page.locator("#key-dialog")).to_be_visible()
        expect(page.locator("#history")).to_be_hidden()
        page.goto("about:blank")


def test_an_answer_whose_connection_is_cut_says_so_and_can_be_had_again(page: Page) -> None:
    engine = EchoEngine(delay_s=0.1)
    with in_background(serving_http(engine)) as address, proxied("/one", address) as proxy:
        page.goto(proxy.url)
        expect(page.locator("#ready")).to_have_text("ready")
        ask(page, "hello", max_tokens=200)
        page.wait_for_function(
            "() => document.querySelector('.assistant .text').textContent.length > 4"
        )
        proxy.cut()
        expect(page.locator(".wrong:visible")).to_contain_text("cannot be reached, or was lost")
        expect(page.locator(".assistant .text")).to_contain_text("user:")
        expect(page.locator("#ready")).to_have_text("ready")
        engine.delay_s = 0
        page.get_by_role("button", name="Try again").click()
        assert wait_for_answer(page).startswith("user: hello")
        expect(page.locator(".message")).to_have_count(2)
        page.goto("about:blank")
