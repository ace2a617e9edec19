"""Open WebUI's own server and a browser: a first message, its title, and a tool.

The demo model gets the built-in tools of Open WebUI with the first message, as every model does. It
is too small to call one, or to write a title as JSON, so that only answers without an error count.
The stand-in calls a tool that was added, and writes a title, tags and a question to follow.
"""

import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import httpx
from playwright.sync_api import Page, expect, sync_playwright

DEMO, SCRIPTED = sys.argv[1:]
START_S = 200
WAIT_MS = 240_000
LOG = Path("server.log")
TOOL = '''
class Tools:
    def weather(self, city: str) -> str:
        """
        The weather in a city.
        :param city: Where.
        """
        return f"18 degrees in {city}"
'''


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@contextmanager
def server() -> Iterator[str]:
    """Starts the server, without its accounts and without the internet; yields its URL."""
    port = free_port()
    with LOG.open("w") as log, start(port, log) as process:
        try:
            wait_for(f"http://127.0.0.1:{port}", process)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait()


def start(port: int, log: IO[str]) -> subprocess.Popen[bytes]:
    """`open-webui serve` with both models."""
    return subprocess.Popen(
        [
            str(Path(sys.executable).with_name("open-webui")),
            *("serve", "--host", "127.0.0.1", "--port", str(port)),
        ],
        env={
            "PATH": "/usr/bin:/bin",
            "HOME": str(Path.cwd()),
            "DATA_DIR": str(Path("data").absolute()),
            "WEBUI_AUTH": "False",
            "OFFLINE_MODE": "True",
            "RAG_EMBEDDING_ENGINE": "openai",  # its own would be downloaded
            "ENABLE_OLLAMA_API": "False",
            # The demo model would go on and on.
            "DEFAULT_MODEL_PARAMS": '{"max_tokens": 24}',
            "TASK_MODEL_PARAMS": '{"max_tokens": 100}',
            "OPENAI_API_BASE_URLS": f"{DEMO}/v1;{SCRIPTED}/v1",
            "OPENAI_API_KEYS": "none;none",
        },
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
    )


def wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    """Returns when the server answers."""
    deadline = time.monotonic() + START_S
    while True:
        assert process.poll() is None, LOG.read_text()
        assert time.monotonic() < deadline, LOG.read_text()
        try:
            httpx.get(f"{url}/health").raise_for_status()
        except httpx.TransportError:
            time.sleep(0.5)
        else:
            return


def add_tool(url: str) -> None:
    """Adds the tool, as the page's editor does."""
    signed_in = httpx.post(f"{url}/api/v1/auths/signin", json={"email": "", "password": ""})
    added = httpx.post(
        f"{url}/api/v1/tools/create",
        json={"id": "sky", "name": "Sky", "content": TOOL, "meta": {"description": "Weather"}},
        headers={"Authorization": f"Bearer {signed_in.raise_for_status().json()['token']}"},
    )
    added.raise_for_status()


def choose(page: Page, model: str) -> None:
    """Picks the model in the list of a new chat."""
    page.locator("#model-selector-model-button").click()
    page.get_by_role("option", name=model).click()


def send(page: Page, text: str) -> str:
    """Sends a message; returns the answer when it is whole."""
    page.locator("#chat-input").fill(text)
    page.keyboard.press("Enter")
    answer = page.locator("[id^=response-content-container]").last
    expect(page.get_by_role("button", name="Regenerate")).to_be_visible()
    return answer.inner_text()


def ask_stand_in(page: Page) -> None:
    """A question with the added tool, which is called; then title, tags and a next question."""
    choose(page, "scripted")
    page.locator("#integration-menu-button").click()
    page.get_by_text("Tools 1").click()
    page.get_by_text("Sky").click()
    page.keyboard.press("Escape")
    answer = send(page, "How is the weather in Paris?")
    assert "weather" in answer, answer
    assert "It is sunny." in answer, answer
    expect(page).to_have_title("Sunny Paris / Open WebUI")
    expect(page.get_by_text("And tomorrow?").first).to_be_visible()


def ask_demo(page: Page) -> None:
    """A first message; whatever the answer and the title are."""
    choose(page, "SmolLM2-135M-Instruct.Q4_1")
    assert send(page, "Say one word.").strip()
    expect(page).to_have_title(re.compile(r".+ / Open WebUI"))
    # Its button is this one again when title, tags and what may follow are there.
    expect(page.get_by_role("button", name="Voice mode")).to_be_visible()


CHROMIUM = shutil.which("chromium")
assert CHROMIUM is not None, "`make browser` installs chromium or says how"
with server() as url, sync_playwright() as playwright:
    add_tool(url)
    chromium = playwright.chromium.launch(
        executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
    )
    page = chromium.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(WAIT_MS)
    expect.set_options(timeout=WAIT_MS)
    page.goto(url)
    page.get_by_role("button", name="Okay, Let's Go!").click()
    ask_stand_in(page)
    page.goto(url)
    ask_demo(page)
    chromium.close()
    assert "request failed" not in LOG.read_text(), LOG.read_text()
