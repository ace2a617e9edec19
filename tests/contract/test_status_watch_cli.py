"""`coordinator-cli status --watch` as a process, against real servers that come and go."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import IO

import pytest

from stagecoach.client import Client
from tests.contract.echo_engine import EchoEngine
from tests.contract.test_generation_client import BackgroundServer
from tests.terminal import CTRL_C, CTRL_D, DEADLINE_S, ROOT, Terminal

COMMAND = (sys.executable, "-m", "coordinator.cli", "status", "--watch", "--interval", "0.1")


@pytest.fixture(scope="module")
def server() -> Iterator[BackgroundServer]:
    with BackgroundServer(EchoEngine()) as server:
        yield server


@contextmanager
def watching(address: str, *arguments: str) -> Iterator[tuple["subprocess.Popen[str]", IO[str]]]:
    with subprocess.Popen(
        [*COMMAND, "--coordinator", address, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout
        finally:
            process.kill()


def test_a_terminal_shows_it_live_until_ctrl_c(server: BackgroundServer) -> None:
    with Terminal([*COMMAND, "--coordinator", server.address]) as terminal:
        terminal.expect("echo at 127.0.0.1")
        terminal.expect("lost")
        with Client(server.address) as client:
            client.complete("abc", max_tokens=5)
        terminal.expect("tokens/s")
        terminal.type(CTRL_C)
        assert terminal.ended() == 0
        assert "Traceback" not in terminal.shown
        assert terminal.raw.rindex("\x1b[?1049l") < terminal.raw.rindex("prefix cache")


@pytest.mark.parametrize("key", ["q", "Q", "xyzq", CTRL_D])
def test_q_ends_it_and_the_terminal_is_as_before(server: BackgroundServer, key: str) -> None:
    with Terminal([*COMMAND, "--coordinator", server.address]) as terminal:
        terminal.expect("echo at 127.0.0.1")
        terminal.type(key)
        assert terminal.ended() == 0
        assert "Traceback" not in terminal.shown


def test_json_is_one_object_a_line_also_while_the_coordinator_is_gone() -> None:
    with ExitStack() as servers:
        address = servers.enter_context(BackgroundServer(EchoEngine())).address
        with watching(address, "--json") as (process, lines):
            before = json.loads(lines.readline())
            assert (before["ready"], before["error"]) == (True, None)
            seen_times = None
            with Client(address) as client:
                while seen_times is None:
                    client.complete("abc", max_tokens=5)
                    seen_times = json.loads(lines.readline())["stages"][0]["ms_per_step"]
            assert set(seen_times) == {"compute", "queue", "wire", "serialize"}

            servers.close()
            while (during := json.loads(lines.readline()))["ready"]:
                pass
            assert set(during) == {"ready", "error"}
            assert address in during["error"]["message"]

            servers.enter_context(BackgroundServer(EchoEngine(), address))
            while not (after := json.loads(lines.readline()))["ready"]:
                assert set(after) == {"ready", "error"}
            process.send_signal(signal.SIGINT)
            _, stderr = process.communicate(timeout=DEADLINE_S)
            assert (process.returncode, stderr) == (0, "")


def test_a_pipe_gets_plain_snapshots(server: BackgroundServer) -> None:
    with watching(server.address) as (process, lines):
        text = ""
        while text.count("prefix cache") < 2:
            text += lines.readline()
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=DEADLINE_S)
        assert (process.returncode, stderr) == (0, "")
    assert "\x1b" not in text
    assert "stage 1 at h:2 is lost" not in text  # it says that it is ready
    assert text.count("echo at") == 2


def test_a_reader_that_goes_away_ends_it_quietly(server: BackgroundServer) -> None:
    with watching(server.address, "--json") as (process, lines):
        lines.readline()
        lines.close()
        assert process.wait(DEADLINE_S) == 141
        assert process.stderr is not None
        assert process.stderr.read() == ""
