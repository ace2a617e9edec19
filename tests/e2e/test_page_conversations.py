"""Conversations that the browser keeps: reloads, several tabs, no storage and a full one."""

import pytest
from playwright.sync_api import Page, expect

from tests.browser import ask, needs_chromium, wait_for_answer
from tests.contract.echo_engine import EchoEngine
from tests.e2e.test_page_chat import opened, told

pytestmark = [pytest.mark.timeout(600), needs_chromium]


def test_conversations_outlive_a_reload_and_can_be_opened_and_deleted(page: Page) -> None:
    engine = EchoEngine()
    page.on("dialog", lambda dialog: dialog.accept())
    with opened(page, engine) as url:
        expect(page.locator("#history")).to_be_hidden()
        expect(page.get_by_role("button", name="New chat")).to_be_disabled()
        ask(page, "first <b>one</b>", max_tokens=9)
        wait_for_answer(page)
        page.reload()
        expect(page.locator(".user .text")).to_have_text("first <b>one</b>")
        assert page.locator(".log b").count() == 0
        ask(page, "more", max_tokens=3)
        wait_for_answer(page)
        assert told(engine) == [
            ("user", "first <b>one</b>"),
            ("assistant", "user: fir"),
            ("user", "more"),
        ]
        page.get_by_role("button", name="New chat").click()
        ask(page, "second", max_tokens=3)
        wait_for_answer(page)
        assert told(engine) == [("user", "second")]
        page.locator("#history summary").click()
        rows = page.locator("#history-rows li")
        expect(rows).to_have_count(2)
        expect(rows.nth(0)).to_contain_text("second")
        page.get_by_role("button", name="first <b>one</b>").first.click()
        expect(page.locator(".message")).to_have_count(4)
        expect(page.locator("#prompt")).to_be_focused()

        # Another tab begins anew, and sees what there is.
        other = page.context.new_page()
        other.goto(url)
        expect(other.locator("#history-count")).to_have_text("2")
        expect(other.locator(".message")).to_have_count(0)
        other.close()

        page.locator("#history summary").click()
        page.get_by_role("button", name="Delete first <b>one</b>").click()
        expect(page.locator(".message")).to_have_count(0)
        expect(rows).to_have_count(1)
        page.get_by_role("button", name="Delete all").click()
        expect(page.locator("#history")).to_be_hidden()
        assert page.evaluate("Object.keys(localStorage)") == []
        page.reload()
        expect(page.locator(".message")).to_have_count(0)


def test_a_reload_in_the_middle_of_an_answer_keeps_what_there_was(page: Page) -> None:
    engine = EchoEngine(delay_s=0.1)
    with opened(page, engine):
        ask(page, "a long story", max_tokens=500)
        page.wait_for_function(
            "() => document.querySelector('.assistant .text').textContent.length > 8"
        )
        page.reload()
        expect(page.locator(".assistant .text")).to_contain_text("user: a l")
        expect(page.locator(".assistant .meta")).to_contain_text("unfinished")
        page.get_by_role("button", name="Try again").click()
        page.get_by_role("button", name="Stop").click()
        expect(page.locator(".assistant .meta")).to_contain_text("stopped")
        expect(page.locator(".message")).to_have_count(2)
        expect(page.get_by_role("button", name="Try again")).to_be_hidden()
        assert told(engine) == [("user", "a long story")]


def test_two_tabs_at_one_conversation_lose_nothing_of_each_other(page: Page) -> None:
    engine = EchoEngine(delay_s=0.05)
    with opened(page, engine) as url:
        ask(page, "shared", max_tokens=3)
        wait_for_answer(page)
        other = page.context.new_page()
        other.goto(url)
        other.locator("#history summary").click()
        other.locator("#history-rows .open").click()
        expect(other.locator(".message")).to_have_count(2)
        ask(page, "of one", max_tokens=60)
        ask(other, "of the other", max_tokens=60)
        wait_for_answer(page)
        wait_for_answer(other)
        expect(page.locator("#history-count")).to_have_text("2")
        other.locator("#history summary").click()
        shown = set()
        for row in range(2):
            other.locator("#history-rows .open").nth(row).click()
            shown.add(other.locator(".user .text").last.inner_text())
            other.locator("#history summary").click()
        assert shown == {"of one", "of the other"}
        # What one adds while the other is idle shows there too.
        page.reload()
        before = page.locator(".user .text").last.inner_text()
        other.locator("#history-rows .open").nth(1).click()
        if other.locator(".user .text").last.inner_text() != before:
            other.locator("#history summary").click()
            other.locator("#history-rows .open").nth(0).click()
        ask(page, "once more", max_tokens=3)
        expect(other.locator(".user .text").last).to_have_text("once more")
        other.close()


def test_a_browser_that_keeps_nothing_works_and_says_so(page: Page) -> None:
    page.add_init_script(
        """for (const kind of ["localStorage", "sessionStorage"]) {
            Object.defineProperty(window, kind, {
                get() { throw new DOMException("denied", "SecurityError"); },
            });
        }"""
    )
    with opened(page, EchoEngine()):
        for text in ("first", "second"):
            ask(page, text, max_tokens=9)
            wait_for_answer(page)
            page.get_by_role("button", name="New chat").click()
        page.locator("#history summary").click()
        expect(page.locator("#history-rows li")).to_have_count(2)
        expect(page.locator("#history-note")).to_contain_text("This browser keeps nothing")
        page.locator("#history-rows .open").last.click()
        expect(page.locator(".assistant .text")).to_have_text("user: fir")
        page.reload()
        expect(page.locator("#ready")).to_have_text("ready")
        expect(page.locator("#history")).to_be_hidden()


FILL = """() => {
    for (let size = 1 << 22; size >= 1; size >>= 1) {
        for (let place = 0; ; place++) {
            try {
                localStorage.setItem(`other ${size} ${place}`, "x".repeat(size));
            } catch {
                break;
            }
        }
    }
}"""


def test_a_full_storage_is_said_and_nothing_that_is_kept_is_lost(page: Page) -> None:
    engine = EchoEngine()
    with opened(page, engine):
        ask(page, "kept", max_tokens=9)
        wait_for_answer(page)
        page.evaluate(FILL)
        ask(page, "too much", max_tokens=400)
        assert len(wait_for_answer(page)) > 300
        expect(page.locator("#keep-note")).to_be_visible()
        ask(page, "goes on", max_tokens=3)
        wait_for_answer(page)
        assert len(told(engine)) == 5
        page.reload()
        expect(page.locator(".user .text")).to_have_text("kept")
        page.evaluate(
            "() => Object.keys(localStorage).filter((key) => key.startsWith('other'))"
            ".forEach((key) => localStorage.removeItem(key))"
        )
        ask(page, "again", max_tokens=3)
        wait_for_answer(page)
        expect(page.locator("#keep-note")).to_be_hidden()
        page.reload()
        expect(page.locator(".user .text")).to_have_text(["kept", "again"])


def test_the_latest_conversations_are_kept_within_bounds(page: Page) -> None:
    keep = """async ([count, size]) => {
        const { Conversations, newConversation } = await import("/page/conversations.js");
        const { newExchange } = await import("/page/exchange.js");
        const { Store } = await import("/page/storage.js");
        const kept = new Conversations(new Store("localStorage"));
        const answers = [];
        for (let place = 0; place < count; place++) {
            const one = newConversation();
            one.exchanges.push(newExchange(`${place} ${"x".repeat(size)}`, "m"));
            answers.push(kept.save(one));
            await new Promise((resolve) => setTimeout(resolve, 2)); // a later millisecond
        }
        const titles = kept.entries().map(({ title }) => title.split(" ")[0]);
        const chars = Object.values(localStorage).reduce((sum, text) => sum + text.length, 0);
        return { titles, chars, isKept: answers.every(Boolean) };
    }"""
    with opened(page, EchoEngine()):
        many = page.evaluate(keep, [103, 10])
        assert many["isKept"]
        assert many["titles"] == [str(place) for place in range(102, 2, -1)]
        large = page.evaluate(keep, [5, 600_000])
        assert large["isKept"]
        assert large["titles"][:3] == ["4", "3", "2"]
        assert large["chars"] <= 2_000_000
        huge = page.evaluate(keep, [1, 3_000_000])
        assert not huge["isKept"]
        assert huge["titles"][1:4] == ["4", "3", "2"]
