"""The playground in a real browser: thinking, calls, what fits no longer, and who cannot see it."""

import json
import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from coordinator.core.output_parts import (
    ArgumentsPart,
    CallBegins,
    CallEnds,
    ContentPart,
    ReasoningPart,
)
from coordinator.core.request_spec import ChatPrompt
from stagecoach.contract.errors import InternalError
from tests.browser import ask, needs_chromium, wait_for_answer
from tests.byte_models import byte_model
from tests.contract.byte_doors import THINKING_TEMPLATE, serving
from tests.contract.catalogs import ServedEngine
from tests.contract.echo_engine import EchoEngine
from tests.contract.http_door import in_background, serving_http
from tests.contract.spoken_engine import Script, SpokenEngine

pytestmark = [pytest.mark.timeout(600), needs_chromium]

THOUGHTS = ["They want ", "the weather.\n", "\n", "<b>I</b> call."]
CALL: Script = [
    CallBegins(0, "call_1", "weather"),
    ArgumentsPart(0, '{"city": "Par'),
    ArgumentsPart(0, 'is", "days": 3}'),
    CallEnds(0),
]


@contextmanager
def opened(page: Page, *engines: ServedEngine) -> Iterator[str]:
    """Serves the engines and shows their page; yields its URL."""
    with in_background(serving_http(*engines)) as address:
        page.goto(f"http://{address}/")
        expect(page.locator("#ready")).to_have_text("ready")
        yield f"http://{address}/"
        page.goto("about:blank")  # ends the stream, which would keep the server


def told(engine: EchoEngine) -> list[tuple[str, str]]:
    """Role and text of what the model was told last."""
    prompt = engine.specs[-1].prompt
    assert isinstance(prompt, ChatPrompt)
    return [(turn.role, turn.content) for turn in prompt.messages]


def say(text: str) -> Script:
    return [ContentPart(piece) for piece in re.findall(r"\S+\s*", text)]


def test_thinking_and_calls_are_folded_and_told_again_once(page: Page) -> None:
    script = [*map(ReasoningPart, THOUGHTS), ContentPart("I look."), *CALL]
    engine = SpokenEngine(script, say("Fine."), say("Bye."))
    with opened(page, engine):
        ask(page, "How is the weather?")
        assert wait_for_answer(page) == "I look."
        thinking = page.locator(".thinking")
        expect(thinking.locator("summary")).to_contain_text("Thought for")
        expect(thinking.locator("summary")).to_contain_text("4 tokens")
        expect(thinking.locator(".thought")).to_be_hidden()
        thinking.locator("summary").press("Enter")
        assert thinking.locator(".thought").inner_text().split("\n\n") == [
            "They want the weather.",
            "<b>I</b> call.",
        ]
        call = page.locator(".call")
        expect(call.locator("summary")).to_contain_text("weather")
        expect(call.locator("pre")).to_be_hidden()
        call.locator("summary").press("Enter")
        expect(call.locator("pre")).to_have_text('{\n  "city": "Paris",\n  "days": 3\n}')
        expect(page.locator(".meta")).to_contain_text("calls are shown, and not run")
        ask(page, "So?")
        assert wait_for_answer(page) == "Fine."
        page.reload()
        expect(page.locator(".thinking summary")).to_contain_text("4 tokens")
        expect(page.locator(".call summary")).to_contain_text("weather")
        ask(page, "Thanks.")
        wait_for_answer(page)
        for spec in engine.specs[1:]:
            assert isinstance(spec.prompt, ChatPrompt)
            _, answer, result, *rest = spec.prompt.messages
            assert (answer.content, answer.reasoning) == ("I look.", "".join(THOUGHTS))
            [sent] = answer.tool_calls
            assert (sent.call_id, sent.name) == ("call_1", "weather")
            assert json.loads(sent.arguments) == {"city": "Paris", "days": 3}
            assert (result.role, result.tool_call_id) == ("tool", "call_1")
            assert "not run" in result.content
            assert [turn.role for turn in rest] in (["user"], ["user", "assistant", "user"])
            assert not any(turn.reasoning or turn.tool_calls for turn in rest)


def test_a_call_that_is_cut_is_shown_as_that_and_told_to_nobody(page: Page) -> None:
    engine = SpokenEngine([ContentPart("I look."), *CALL[:2]], say("Fine."))
    with opened(page, engine):
        ask(page, "How is the weather?")
        wait_for_answer(page)
        expect(page.locator(".call summary")).to_contain_text("Call that was cut: weather")
        ask(page, "So?")
        assert wait_for_answer(page) == "Fine."
        assert told(engine) == [
            ("user", "How is the weather?"),
            ("assistant", "I look."),
            ("user", "So?"),
        ]


def test_a_model_thinks_in_the_open_until_it_is_cut(page: Page, tmp_path: Path) -> None:
    model = byte_model(tmp_path, max_model_len=2048, chat_template=THINKING_TEMPLATE)
    with in_background(serving(model)) as address:
        page.goto(f"http://{address}/")
        ask(page, "Think.", max_tokens=40)
        assert wait_for_answer(page) == ""
        expect(page.locator(".thinking summary")).to_contain_text("40 tokens")
        expect(page.locator(".assistant .meta")).to_contain_text("stopped at max tokens")
        page.goto("about:blank")


def test_thinking_is_told_from_the_answer_while_it_streams(page: Page) -> None:
    script = [*map(ReasoningPart, THOUGHTS), *say("The answer is long enough to be seen.")]
    with opened(page, SpokenEngine(script, delay_s=0.3)):
        ask(page, "How is the weather?")
        expect(page.locator(".thinking summary")).to_contain_text("Thinking")
        expect(page.locator(".assistant .text")).to_be_hidden()
        expect(page.locator(".thinking summary")).to_contain_text("Thought for")
        expect(page.get_by_role("button", name="Stop")).to_be_visible()
        wait_for_answer(page)


def test_what_fits_no_longer_is_left_out_and_that_is_said(page: Page) -> None:
    engine = EchoEngine(max_model_len=160)
    with opened(page, engine):
        for place in range(8):
            ask(page, f"question {place}", max_tokens=20)
            wait_for_answer(page)
        expect(page.locator(".wrong:visible")).to_have_count(0)
        expect(page.locator(".meta").last).to_contain_text("no longer fitted")
        assert told(engine)[-1] == ("user", "question 7")
        assert told(engine)[0] != ("user", "question 0")
        assert told(engine)[0][0] == "user"
        ask(page, "x" * 200, max_tokens=20)
        wait_for_answer(page)
        expect(page.locator(".wrong:visible")).to_contain_text("leave no room in 160")


def test_a_model_that_goes_away_in_the_middle_is_waited_for_in_words(page: Page) -> None:
    engine = EchoEngine(delay_s=0.2)
    with opened(page, engine):
        ask(page, "hello", max_tokens=40)
        engine.is_ready = False
        expect(page.locator(".meta").last).to_contain_text("goes on once it is")
        engine.is_ready = True
        expect(page.locator(".meta").last).to_have_text("")
        page.get_by_role("button", name="Stop").click()
        engine.failure, engine.fail_after_tokens = InternalError("stage 1 was lost for good"), 5
        ask(page, "again", max_tokens=40)
        wait_for_answer(page)
        expect(page.locator(".wrong:visible")).to_contain_text("Error: stage 1 was lost for good")
        expect(page.locator(".assistant .text").last).to_have_text("user:")
        engine.failure = None
        page.get_by_role("button", name="Try again").click()
        wait_for_answer(page)
        expect(page.locator(".wrong:visible")).to_have_count(0)
        expect(page.locator(".user .text")).to_have_text(["hello", "again"])


MARKUP = (
    "\n\nHello <script>document.title = 1</script>\n\nA ``code`` and\nmore `x`.\n"
    "```html\n<img src=x onerror=alert(1)>\n\n  two\n```\nBetween.\n\n\n```\nopen\n``"
)


def test_any_split_of_a_stream_shows_what_the_whole_text_shows(page: Page) -> None:
    shown = """async (pieces) => {
        const { TextView } = await import("/page/text_view.js");
        const view = new TextView("");
        pieces.forEach((_, index) =>
            view.show(pieces.slice(0, index + 1).join(""), { isWhole: false }));
        view.show(pieces.join(""), { isWhole: true });
        return view.node.innerHTML;
    }"""
    with opened(page, EchoEngine()):
        whole = page.evaluate(shown, [MARKUP])
        assert whole == (
            '<p class="">Hello &lt;script&gt;document.title = 1&lt;/script&gt;</p>'
            '<p class="">A ``code`` and\nmore `x`.</p>'
            '<pre class="code">&lt;img src=x onerror=alert(1)&gt;\n\n  two</pre>'
            '<p class="">Between.</p>'
            '<pre class="code">open\n``</pre>'
        )
        draw = random.Random(16)
        for _ in range(50):
            cuts = sorted(draw.sample(range(1, len(MARKUP)), draw.randrange(1, 40)))
            pieces = [MARKUP[a:b] for a, b in zip([0, *cuts], [*cuts, len(MARKUP)], strict=True)]
            assert page.evaluate(shown, pieces) == whole


def test_a_screen_reader_hears_of_an_answer_twice_and_the_keyboard_reaches_all(page: Page) -> None:
    script = [*map(ReasoningPart, THOUGHTS), *say("A fine day."), *CALL]
    with opened(page, SpokenEngine(script, say(f"Long {'word ' * 300}"))):
        page.evaluate(
            """() => {
                window.heard = [];
                const node = document.getElementById("announcer");
                new MutationObserver(() => heard.push(node.textContent))
                    .observe(node, { childList: true, characterData: true, subtree: true });
            }"""
        )
        expect(page.locator("#log")).to_have_attribute("aria-live", "off")
        ask(page, "How is the weather?")
        wait_for_answer(page)
        ask(page, "More.")
        wait_for_answer(page)
        wait = "Waiting for the answer."
        assert page.evaluate("heard") == [
            *(wait, "A fine day. Calls weather."),
            *(wait, "The answer has 301 words."),
        ]
        nameless = page.evaluate(
            """() => [...document.querySelectorAll("button, input, textarea, select, summary")]
                .filter((node) => !(node.textContent.trim() || node.ariaLabel
                    || node.labels?.[0]?.textContent.trim()))
                .map((node) => node.outerHTML)"""
        )
        assert nameless == []
        page.locator("#history summary").click()
        page.evaluate("document.activeElement.blur()")
        reached: dict[str, Any] = {}
        for _ in range(30):
            page.keyboard.press("Tab")
            name, outline = page.evaluate(
                """() => {
                    const { activeElement: node } = document;
                    const style = getComputedStyle(node);
                    return [node.id || node.textContent.trim(),
                        `${style.outlineStyle} ${style.outlineWidth}`];
                }"""
            )
            reached[name] = outline
        for name in ("new-chat", "delete-all", "log", "prompt", "temperature", "send"):
            assert reached[name] == "solid 2px"
        assert any(name.startswith("Thought for") for name in reached)
        assert any(name.startswith("Calls weather") for name in reached)
