"""The status page and playground in a real browser, in front of real clusters."""

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from coordinator.doors.access.callers import Callers
from tests.browser import ask, needs_chromium, wait_for_answer
from tests.contract.echo_engine import EchoEngine
from tests.contract.http_door import in_background, serving_http
from tests.tiny_models import tiny_model

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.timeout(900), needs_chromium]


@contextmanager
def server(*arguments: str) -> Iterator[tuple["subprocess.Popen[str]", dict[str, Any]]]:
    """Runs a program of ours; yields it and what it prints when it is ready."""
    with subprocess.Popen(
        [sys.executable, "-m", *arguments, "--json"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield process, json.loads(process.stdout.readline())
        finally:
            process.terminate()


class Cluster:
    """Two stages and a coordinator as processes; the second stage can be killed and restarted."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        _, first = self._start_stage("0:15", "127.0.0.1:0")
        self._second, second = self._start_stage("15:30", "127.0.0.1:0")
        self.lost_address = str(second["address"])
        _, ready = stack.enter_context(
            server(
                *("coordinator.cli", "serve", "--model", "demo", "--drain-grace-s", "0"),
                *("--stage", first["address"], "--stage", self.lost_address),
                *("--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"),
            )
        )
        self.url = f"http://{ready['http']}/"

    def _start_stage(
        self, layers: str, listen: str
    ) -> tuple["subprocess.Popen[str]", dict[str, Any]]:
        return self._stack.enter_context(
            server(
                *("stage_server", "--model", "demo", "--layers", layers, "--listen", listen),
                *("--threads", "1", "--kv-memory", "64MiB", "--dtype", "float32"),
            )
        )

    def kill_second_stage(self) -> None:
        self._second.kill()
        self._second.wait()

    def restart_second_stage(self) -> None:
        self._second, _ = self._start_stage("15:30", self.lost_address)

    def status(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.url}status") as response:
            state: dict[str, Any] = json.load(response)
            return state


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with ExitStack() as stack:
        yield Cluster(stack)


def test_the_page_shows_the_pipeline(page: Page, cluster: Cluster) -> None:
    page.goto(cluster.url)
    expect(page.locator("#ready")).to_have_text("ready")
    expect(page.locator("#model")).to_have_text(cluster.status()["model"])
    stages = page.locator(".stages > li")
    expect(stages).to_have_count(2)
    for index, layers in enumerate(("0 to 14 (15)", "15 to 29 (15)")):
        stage = stages.nth(index)
        expect(stage).to_contain_text(cluster.status()["stages"][index]["address"])
        expect(stage).to_contain_text(layers)
        expect(stage).to_contain_text("float32")
        expect(stage).to_contain_text("MiB · 32.0 bits")
        expect(stage).to_contain_text("MiB · float32")
        expect(stage.locator(".pill")).to_have_text("ready")
    expect(page.locator("#emulated")).to_be_hidden()
    expect(page.locator("#trouble")).to_be_hidden()


def test_an_answer_streams_and_the_stages_are_seen_at_work(page: Page, cluster: Cluster) -> None:
    page.goto(cluster.url)
    expect(page.locator("#ready")).to_have_text("ready")
    ask(page, "What is the capital of France?")
    # Text is there while more is to come.
    page.wait_for_function(
        "() => document.querySelector('.assistant .text').textContent.length > 0"
        " && !document.getElementById('stop').hidden"
    )
    assert "Paris" in wait_for_answer(page)
    expect(page.locator(".assistant .meta")).to_contain_text("tokens/s")
    expect(page.locator(".assistant .meta")).to_contain_text("first token")
    for index in range(2):
        busy = page.locator(".stages > li").nth(index).get_by_label("Busy")
        expect(busy).not_to_have_attribute("aria-label", "Busy: 0 %")
    assert page.locator("#sparkline .line").get_attribute("d")
    # The conversation goes on: the model sees what was said.
    ask(page, "What did I ask you about?")
    wait_for_answer(page)
    expect(page.locator(".user")).to_have_count(2)
    page.get_by_role("button", name="New chat").click()
    expect(page.locator(".message")).to_have_count(0)


def test_stop_ends_the_answer_and_keeps_the_chat(page: Page, cluster: Cluster) -> None:
    page.goto(cluster.url)
    ask(page, "Tell me a very long story.", max_tokens=2000)
    page.wait_for_function(
        "() => document.querySelector('.assistant .text').textContent.length > 20"
    )
    page.get_by_role("button", name="Stop").click()
    assert wait_for_answer(page)
    expect(page.locator(".assistant .meta")).to_contain_text("stopped")
    while cluster.status()["running"]:
        pass
    ask(page, "And one word more.", max_tokens=4)
    wait_for_answer(page)
    expect(page.locator(".assistant")).to_have_count(2)


def test_markup_is_shown_and_never_run(page: Page, cluster: Cluster) -> None:
    page.goto(cluster.url)
    markup = '<img src="x" onerror="document.title=1"><b>bold</b>'
    ask(page, f"Repeat exactly: {markup}", max_tokens=8)
    wait_for_answer(page)
    expect(page.locator(".user .text")).to_have_text(f"Repeat exactly: {markup}")
    assert page.locator(".log img, .log b").count() == 0
    assert page.title() == "Stagecoach"


def test_an_error_is_shown_with_its_numbers(page: Page, cluster: Cluster) -> None:
    page.goto(cluster.url)
    expect(page.locator("#ready")).to_have_text("ready")
    limit = cluster.status()["max_model_len"]
    ask(page, "Hello " * limit, max_tokens=1)
    expect(page.locator(".wrong:visible")).to_contain_text(f"together may have {limit}")
    assert wait_for_answer(page) == ""


def test_a_key_is_asked_for_once_and_kept_for_the_tab(page: Page) -> None:
    key = "k" * 32
    keyed = serving_http(EchoEngine(), callers=Callers.of_text(f"alice:{key}"))
    with in_background(keyed) as address:
        page.goto(f"http://{address}/")
        page.get_by_label("Key", exact=True).fill("a guess")
        page.get_by_role("button", name="Use this key").click()
        expect(page.get_by_text("That key was refused.")).to_be_visible()
        page.get_by_label("Key", exact=True).fill(key)
        page.get_by_role("button", name="Use this key").click()
        expect(page.locator("#model")).to_have_text("echo")
        ask(page, "hello", max_tokens=11)
        assert wait_for_answer(page) == "user: hello"
        page.reload()
        expect(page.locator("#model")).to_have_text("echo")
        expect(page.locator("#key-dialog")).to_be_hidden()
        page.goto("about:blank")  # ends the stream, which would keep the server


@pytest.mark.parametrize(
    "pasted",
    [
        "“stagecoach-key”",
        pytest.param("ключ-алисы-1234567", marks=pytest.mark.slow),
        pytest.param("k" * 70_000, marks=pytest.mark.slow),
    ],
    ids=lambda key: key[:4],
)
def test_a_key_that_cannot_be_sent_is_refused_and_asked_for_again(page: Page, pasted: str) -> None:
    """The tab once said that the coordinator does not answer, also when it was loaded again."""
    key = "k" * 32
    keyed = serving_http(EchoEngine(), callers=Callers.of_text(f"alice:{key}"))
    with in_background(keyed) as address:
        page.goto(f"http://{address}/")
        page.get_by_label("Key", exact=True).fill(pasted)
        page.get_by_role("button", name="Use this key").click()
        expect(page.get_by_text("That key was refused.")).to_be_visible()
        expect(page.locator("#trouble")).to_be_hidden()
        page.reload()
        expect(page.get_by_text("That key was refused.")).to_be_visible()
        page.get_by_label("Key", exact=True).fill(f" {key} ")
        page.get_by_role("button", name="Use this key").click()
        expect(page.locator("#model")).to_have_text("echo")
        expect(page.locator("#key-dialog")).to_be_hidden()
        page.goto("about:blank")


def test_an_answer_whose_stream_ends_early_is_not_taken_for_whole(page: Page) -> None:
    """As behind a proxy that closes in good order, and where the end is that of the connection."""
    chunk = {"choices": [{"index": 0, "delta": {"content": "Once upon"}, "finish_reason": None}]}
    last = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    bodies = iter(["", f"data: {json.dumps(chunk)}\n\ndata: {{", f"data: {json.dumps(last)}\n\n"])
    with in_background(serving_http(EchoEngine())) as address:
        page.goto(f"http://{address}/")
        page.route(
            "**/v1/chat/completions",
            lambda route: route.fulfill(body=next(bodies), content_type="text/event-stream"),
        )
        for _ in range(3):
            ask(page, "A story.")
            wait_for_answer(page)
        answers = page.locator(".assistant")
        expect(answers).to_have_count(3)
        for index in range(2):
            expect(answers.nth(index)).to_contain_text("Error: the answer ended early")
        expect(answers.nth(1)).to_contain_text("Once upon")
        expect(answers.nth(2)).not_to_contain_text("Error")
        page.goto("about:blank")


def test_of_two_models_the_one_that_is_picked_is_shown_and_talked_to(page: Page) -> None:
    """The playground named none of them, and each of its messages was refused."""
    first, second = EchoEngine(names=("large", "big")), EchoEngine(names=("small",))
    second.is_ready = False
    with in_background(serving_http(first, second)) as address:
        page.goto(f"http://{address}/")
        picker = page.get_by_label("Model", exact=True)
        expect(picker.locator("option")).to_have_text(["large", "small (loading)"])
        expect(page.locator("#ready")).to_have_text("ready")
        ask(page, "hello", max_tokens=11)
        assert wait_for_answer(page) == "user: hello"
        assert (len(first.specs), len(second.specs)) == (1, 0)
        picker.select_option("small")
        expect(page.locator("#ready")).to_have_text("stage lost")
        second.is_ready = True
        expect(page.locator("#ready")).to_have_text("ready")
        expect(picker.locator("option")).to_have_text(["large", "small"])
        ask(page, "again", max_tokens=11)
        wait_for_answer(page)
        assert (len(first.specs), len(second.specs)) == (1, 1)
        page.reload()
        expect(picker).to_have_value("small")
        page.goto("about:blank")


def test_servers_of_one_stage_share_what_it_did(page: Page) -> None:
    """The second server of a stage had the figures of the next stage."""
    with in_background(serving_http(EchoEngine())) as address:
        with urllib.request.urlopen(f"http://{address}/status") as response:
            state = json.load(response)
        stage = state["stages"][0]
        state["stages"] = [{**stage, "index": index} for index in (0, 0, 1, 1)]
        did = dict.fromkeys(("compute_ms", "queue_ms", "wire_ms", "serialize_ms"), 1.0)
        state["activity"] = {
            **dict.fromkeys(("steps", "window_s", "schedule_ms", "sample_ms", "emit_ms"), 1.0),
            "stages": [{**did, "busy_share": share} for share in (0.25, 0.75)],
        }
        body = f"data: {json.dumps({**state, 'at_s': 1.0})}\n\n"
        page.route(
            "**/status/stream",
            lambda route: route.fulfill(body=body, content_type="text/event-stream"),
        )
        page.goto(f"http://{address}/")
        boxes = page.locator(".stages > li")
        expect(boxes).to_have_count(4)
        for place, share in enumerate((25, 25, 75, 75)):
            expect(boxes.nth(place)).to_contain_text(f"{share} %")


@pytest.mark.parametrize("body", ["<html>", '{"error": "bad gateway"}', '{"error": {"code": 502}}'])
def test_an_error_of_a_proxy_is_shown_by_its_status(page: Page, body: str) -> None:
    with in_background(serving_http(EchoEngine())) as address:
        page.route("**/status/stream", lambda route: route.fulfill(body=body, status=502))
        page.goto(f"http://{address}/")
        expect(page.locator("#trouble")).to_have_text("The answer was HTTP 502.")
        page.unroute_all()
        expect(page.locator("#ready")).to_have_text("ready")
        page.goto("about:blank")


def test_nothing_sticks_out_at_any_width(page: Page, cluster: Cluster) -> None:
    page.goto(cluster.url)
    expect(page.locator(".stages > li")).to_have_count(2)
    for width in (320, 390, 768, 1024, 1920):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_stream_goes_on_behind_the_comments_of_a_server_that_waits(
    page: Page, cluster: Cluster
) -> None:
    page.goto(cluster.url)
    read = """async () => {
        const { events } = await import("/page/api.js");
        const chunks = ['data: {"a": 1}\\n\\n: wai', 'ting\\n\\n: waiting\\n\\n',
            'data: {"a": 2}\\n\\ndata: [DONE]\\n\\n'];
        const body = new Blob(chunks).stream();
        const found = [];
        for await (const event of events(new Response(body))) found.push(event.a);
        return found;
    }"""
    assert page.evaluate(read) == [1, 2]


def test_a_killed_stage_shows_as_lost_and_the_answer_goes_on_when_it_is_back(
    page: Page, cluster: Cluster
) -> None:
    page.goto(cluster.url)
    ask(page, "Count from one to one hundred.", max_tokens=120)
    page.wait_for_function("() => document.querySelector('.assistant .text').textContent !== ''")
    cluster.kill_second_stage()
    lost = page.locator(".stages > li").nth(1)
    expect(lost.locator(".pill")).to_have_text("lost")
    expect(lost).to_contain_text("Not reachable")
    expect(page.locator("#ready")).to_have_text("stage lost")
    expect(page.locator("#trouble")).to_contain_text(f"stage 1 at {cluster.lost_address}")
    expect(page.locator(".stages > li").nth(0).locator(".pill")).to_have_text("ready")
    text_so_far = page.locator(".assistant .text").inner_text()
    cluster.restart_second_stage()
    expect(page.locator("#ready")).to_have_text("ready")
    answer = wait_for_answer(page)
    assert page.locator(".wrong:visible").all_inner_texts() == []
    assert answer.startswith(text_so_far)
    assert len(answer) > len(text_so_far)
    expect(page.locator("#trouble")).to_be_hidden()


def test_a_coordinator_that_goes_away_is_said_to_be_unreachable(page: Page) -> None:
    emulated = ("--engine", "emulated", "--emulate", "rtx-3060-12gb")
    arguments = ("up", "--model", "shape:llama-160m", "--stages", "3", *emulated)
    with server("coordinator.cli", *arguments, "--grpc-port", "0", "--http-port", "0") as (
        _,
        ready,
    ):
        page.goto(f"http://{ready['http']}/")
        expect(page.locator("#ready")).to_have_text("ready")
        expect(page.locator("#emulated")).to_be_visible()
        expect(page.locator(".stage .badge:visible")).to_have_count(3)
        expect(page.locator(".stages > li").first).to_contain_text("device")
        expect(page.locator("#chat-note")).to_contain_text("no tokenizer")
        ask(page, "1 15043 3186", max_tokens=5)
        assert len(wait_for_answer(page).split()) == 5
        ask(page, "three words here")
        expect(page.locator(".wrong:visible")).to_contain_text("as numbers")
    expect(page.locator("#ready")).to_have_text("unreachable")
    expect(page.locator("#trouble")).to_be_visible()


def test_a_model_without_a_chat_template_continues_text_and_says_so(
    page: Page, tmp_path: Path
) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({byte: i for i, byte in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    model = tiny_model("llama", tmp_path, vocab_size=len(alphabet))
    tokenizer.save(str(model / "tokenizer.json"))
    arguments = ("up", "--model", str(model), "--stages", "1", "--threads", "1")
    with server("coordinator.cli", *arguments, "--grpc-port", "0", "--http-port", "0") as (
        _,
        ready,
    ):
        page.goto(f"http://{ready['http']}/")
        ask(page, "Once upon a time", max_tokens=8)
        assert wait_for_answer(page)
        expect(page.locator("#chat-note")).to_contain_text("no chat template")
        expect(page.locator(".wrong:visible")).to_have_count(0)
