"""Everything that is written on the page can be read: contrast of 4.5 to 1, in a real browser.

The measure is that of WCAG 2.2, criteria 1.4.3 (text) and 1.4.11 (edges of controls), level AA.
"""

from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from coordinator.core.output_parts import ReasoningPart
from tests.browser import ask, fresh_context, needs_chromium, wait_for_answer
from tests.contract.echo_engine import EchoEngine
from tests.contract.http_door import in_background, serving_http
from tests.contract.spoken_engine import SpokenEngine
from tests.e2e.test_page_chat import CALL, say

pytestmark = [pytest.mark.timeout(600), needs_chromium]

FAINT = """() => {
    const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
    const rgba = (color) => {
        canvas.clearRect(0, 0, 1, 1);
        canvas.fillStyle = color;
        canvas.fillRect(0, 0, 1, 1);
        const [red, green, blue, alpha] = canvas.getImageData(0, 0, 1, 1).data;
        return [red, green, blue, alpha / 255];
    };
    const over = ([red, green, blue, alpha], below) =>
        [red, green, blue].map((part, at) => part * alpha + below[at] * (1 - alpha));
    const luminance = (color) => {
        const [red, green, blue] = color.map((part) => {
            const share = part / 255;
            return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
        });
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
    };
    const contrast = (one, other) => {
        const [low, high] = [luminance(one), luminance(other)].sort((a, b) => a - b);
        return (high + 0.05) / (low + 0.05);
    };
    const page = () => rgba(getComputedStyle(document.body).backgroundColor).slice(0, 3);

    // All colors that may be behind the middle of a box: each stripe of a gradient is one.
    const grounds = (node, { x, y } = middle(node)) => {
        if (node === null) {
            return [page()];
        }
        const { left, right, top, bottom } = node.getBoundingClientRect();
        if (x < left || x > right || y < top || y > bottom) {
            return grounds(node.parentElement, { x, y });
        }
        const style = getComputedStyle(node);
        const color = rgba(style.backgroundColor);
        const below = color[3] === 1 ? [[0, 0, 0]] : grounds(node.parentElement, { x, y });
        const flat = below.map((ground) => over(color, ground));
        const stripes = style.backgroundImage.match(/rgba?\\([^)]*\\)/g) ?? [];
        return [...flat, ...flat.flatMap((ground) =>
            stripes.map((stripe) => over(rgba(stripe), ground)))];
    };
    function middle(node) {
        const { left, right, top, bottom } = node.getBoundingClientRect();
        return { x: (left + right) / 2, y: (top + bottom) / 2 };
    }
    const opacity = (node) =>
        node === null ? 1 : Number(getComputedStyle(node).opacity) * opacity(node.parentElement);

    const found = [];
    let numLooked = 0;
    const look = (node, what, color, style, least) => {
        numLooked += 1;
        const own = rgba(what.startsWith("::") ? style.backgroundColor : "transparent");
        const seen = grounds(node).map((below) => {
            const ground = over(own, below);
            const ink = rgba(color);
            ink[3] *= opacity(node);
            return contrast(over(ink, ground), ground);
        });
        const size = parseFloat(style.fontSize);
        const isLarge = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
        if (Math.min(...seen) < (least ?? (isLarge ? 3 : 4.5))) {
            found.push(`${Math.min(...seen).toFixed(2)} ${what}: ${node.outerHTML.slice(0, 90)}`);
        }
    };
    for (const node of document.body.querySelectorAll("*")) {
        if (!node.checkVisibility({ checkVisibilityCSS: true }) || node.closest("svg")) {
            continue;
        }
        const style = getComputedStyle(node);
        const isField = node.matches("input, textarea, select");
        if (isField || [...node.childNodes].some((child) =>
            child.nodeType === Node.TEXT_NODE && child.data.trim() !== "")) {
            look(node, "text", style.color, style);
        }
        for (const pseudo of ["::before", "::after", "::placeholder", "::marker"]) {
            const part = getComputedStyle(node, pseudo);
            const isThere = pseudo === "::placeholder"
                ? Boolean(node.placeholder)
                : pseudo === "::marker"
                    ? style.display === "list-item"
                    : !["none", "normal", '""'].includes(part.content);
            if (isThere) {
                look(node, pseudo, part.color, part);
            }
        }
        if (isField || node.matches("button.quiet:not(:disabled)")) {
            const least = 3;
            look(node.parentElement, `edge of ${node.id}`, style.borderTopColor, style, least);
        }
    }
    return { found, numLooked };
}"""


def assert_readable(page: Page, *, at_least: int) -> None:
    looked: dict[str, Any] = page.evaluate(FAINT)
    assert looked["found"] == [], "\n".join(looked["found"])
    assert looked["numLooked"] >= at_least


@pytest.mark.parametrize(
    ("scheme", "width"),
    [
        ("light", 1280),
        ("dark", 390),
        pytest.param("light", 390, marks=pytest.mark.slow),
        pytest.param("dark", 1280, marks=pytest.mark.slow),
    ],
)
def test_all_that_is_written_can_be_read(browser: Browser, scheme: Any, width: int) -> None:
    script = [*map(ReasoningPart, ("They want ", "weather.")), *say("```\nx\n```\nFine."), *CALL]
    engine = SpokenEngine(script, say("Wait for it."), delay_s=0.2)
    other = EchoEngine(names=("other",))
    sizes = {"width": width, "height": 900}
    with (
        in_background(serving_http(engine, other)) as address,
        fresh_context(browser, viewport=sizes, color_scheme=scheme) as context,
    ):
        page = context.new_page()
        page.goto(f"http://{address}/")
        expect(page.locator(".stages > li")).to_have_count(2)
        expect(page.get_by_role("button", name="New chat")).to_be_disabled()
        assert_readable(page, at_least=40)
        ask(page, "How is the weather?")
        expect(page.locator(".thinking.going")).to_be_visible()
        assert_readable(page, at_least=40)
        wait_for_answer(page)
        for summary in page.locator(".chat summary").all():
            summary.click()
        page.locator("#prompt").fill("written")
        engine.is_ready = False
        expect(page.locator("#ready")).to_have_text("stage lost")
        ask(page, "And now?")
        expect(page.locator(".meta").last).to_contain_text("not ready")
        assert_readable(page, at_least=60)
        wait_for_answer(page)
        page.evaluate(
            """() => {
                document.querySelector(".wrong").hidden = false;
                document.querySelector(".wrong").textContent = "Error: no";
                for (const node of document.querySelectorAll("[hidden].hint, .badge, .retry")) {
                    node.hidden = false;
                }
                for (const node of document.querySelectorAll(".link-text")) {
                    node.textContent = "1.2 ms";
                }
                document.getElementById("chat-note").textContent = "This model has no tokenizer.";
            }"""
        )
        assert_readable(page, at_least=60)
        page.get_by_label("Model", exact=True).select_option("other")
        for shown in ("starting", "unreachable"):
            page.evaluate(
                """([shown]) => {
                    document.body.classList.add("stale");
                    const pill = document.getElementById("ready");
                    pill.className = shown === "starting" ? "pill connecting" : "pill lost";
                    const dialog = document.getElementById("key-dialog");
                    document.getElementById("key-wrong").hidden = false;
                    dialog.open || dialog.show();
                }""",
                [shown],
            )
            assert_readable(page, at_least=60)
        page.goto("about:blank")
