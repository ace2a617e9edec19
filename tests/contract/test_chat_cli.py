"""`coordinator-cli chat` in a real terminal, from a pipe, and as JSON, against a real server."""

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from coordinator.core.request_spec import ChatPrompt
from stagecoach.contract.errors import QueueFullError, UnavailableError
from tests.contract.echo_engine import MAX_MODEL_LEN, EchoEngine
from tests.contract.test_generation_client import BackgroundServer, until
from tests.terminal import ALT_ENTER, CTRL_C, CTRL_D, DEADLINE_S, ENTER, ROOT, TAB, Terminal

COMMAND = (sys.executable, "-m", "coordinator.cli", "chat")


@pytest.fixture
def server() -> Iterator[BackgroundServer]:
    with BackgroundServer(EchoEngine()) as server:
        yield server


@contextmanager
def chat(server: BackgroundServer, state: Path, *arguments: str) -> Iterator[Terminal]:
    environment = {"STAGECOACH_COORDINATOR": server.address, "XDG_STATE_HOME": str(state)}
    with Terminal([*COMMAND, "--max-tokens", "40", *arguments], environment) as terminal:
        terminal.expect("Ctrl-D leaves")
        terminal.expect("> ")
        yield terminal


ODD = ("Traceback", "Error", "Exception", "ignored", "never", "Task", "Fatal")
"""What a program says that was not written to be read."""


@pytest.mark.parametrize("is_answering", [False, True], ids=["idle", "answering"])
@pytest.mark.parametrize("way", ["SIGTERM", "SIGHUP", "ctrl-d", "server gone", "ctrl-c"])
def test_a_chat_ends_quietly_and_leaves_the_terminal_as_it_was(
    tmp_path: Path, way: str, is_answering: bool
) -> None:
    with BackgroundServer(EchoEngine(delay_s=0.05)) as server:
        environment = {"STAGECOACH_COORDINATOR": server.address, "XDG_STATE_HOME": str(tmp_path)}
        with Terminal([*COMMAND, "--max-tokens", "400"], environment) as terminal:
            before = terminal.modes()
            terminal.expect("> ")
            if is_answering:
                terminal.type("hello" + ENTER)
                terminal.expect("user: hel")
            if way.startswith("SIG"):
                terminal.process.send_signal(getattr(signal, way))
                assert terminal.ended() == -getattr(signal, way)
            else:
                if way == "server gone":
                    server.stop()
                    if not is_answering:
                        terminal.type("hello" + ENTER)
                    terminal.expect("coordinator at ")
                    terminal.expect("> ")
                elif is_answering:
                    terminal.type(CTRL_C)
                    terminal.expect("(stopped)")
                    terminal.expect("> ")
                elif way == "ctrl-c":
                    terminal.type(CTRL_C)
                    terminal.expect("(Ctrl-D or /exit leaves)")
                terminal.type(CTRL_D)
                assert terminal.ended() == 0
            assert terminal.modes() == before
            assert not [word for word in ODD if word in terminal.shown]
        until(lambda: not server.engine.running)


def piped(
    server: BackgroundServer, stdin: str, *arguments: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        check=False,
        cwd=ROOT,
        env={**os.environ, "STAGECOACH_COORDINATOR": server.address},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )


def asked(server: BackgroundServer) -> list[list[tuple[str, str]]]:
    """The conversation of every request."""
    prompts = [spec.prompt for spec in server.engine.specs]
    assert all(isinstance(prompt, ChatPrompt) for prompt in prompts)
    return [
        [(turn.role, turn.content) for turn in prompt.messages]
        for prompt in prompts
        if isinstance(prompt, ChatPrompt)
    ]


def test_a_person_types_stops_an_answer_goes_on_and_leaves(
    server: BackgroundServer, tmp_path: Path
) -> None:
    with chat(server, tmp_path) as terminal:
        terminal.type("hi" + ENTER)
        terminal.expect("user: hi\nuser: hi\n")
        terminal.expect("cut off after 40 tokens")

        server.engine.delay_s = 0.02
        terminal.type("/set max-tokens 4000" + ENTER)
        terminal.expect("max-tokens 4000")
        terminal.type("again" + ENTER)
        terminal.expect("user: hi\nassistant: ")
        terminal.type(CTRL_C)
        terminal.expect("(stopped)")
        until(lambda: not server.engine.running)

        server.engine.delay_s = 0
        terminal.type("/set max-tokens 3" + ENTER)
        terminal.expect("max-tokens 3")
        terminal.type("more" + ENTER)
        terminal.expect("cut off after 3 tokens")
        terminal.expect("> ")
        terminal.type(CTRL_C)
        terminal.expect("Ctrl-D or /exit leaves")
        terminal.type(CTRL_D)
        assert terminal.ended() == 0
    (_, (_, answer, question, stopped, last)) = asked(server)[1], asked(server)[2]
    assert answer[0] == "assistant"
    assert question == ("user", "again")
    assert stopped[0] == "assistant"
    assert stopped[1].startswith("user: hi\nassistant: ")
    assert last == ("user", "more")


def test_a_message_may_have_several_lines_and_commands_complete(
    server: BackgroundServer, tmp_path: Path
) -> None:
    with chat(server, tmp_path, "--max-tokens", "2") as terminal:
        terminal.type("one" + ALT_ENTER + "two\\" + ENTER + "three" + ENTER)
        terminal.expect("cut off after 2 tokens")
        terminal.type("/sys" + TAB)
        terminal.expect("/sys")
        terminal.expect("tem")
        terminal.type(" Be kind." + ENTER)
        terminal.expect("system message set")
        terminal.type("/und" + TAB)
        terminal.expect("/und")
        terminal.expect("o")
        terminal.type(ENTER)
        terminal.expect("taken back: one two three")
        terminal.type('"""' + ENTER + "x" + ENTER + '"""' + ENTER)
        terminal.expect("cut off after 2 tokens")
        terminal.type("/exit" + ENTER)
        assert terminal.ended() == 0
    assert asked(server) == [
        [("user", "one\ntwo\nthree")],
        [("system", "Be kind."), ("user", "x")],
    ]


def test_what_was_typed_is_kept_for_its_owner_alone(
    server: BackgroundServer, tmp_path: Path
) -> None:
    path = tmp_path / "stagecoach" / "chat_history"
    with chat(server, tmp_path) as terminal:
        terminal.type("remember me" + ENTER)
        terminal.expect("cut off")
        terminal.type(CTRL_D)
        assert terminal.ended() == 0
    assert "+remember me" in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with chat(server, tmp_path, "--no-history") as terminal:
        terminal.type("forget me" + ENTER)
        terminal.expect("cut off")
        terminal.type(CTRL_D)
        assert terminal.ended() == 0
    assert "forget me" not in path.read_text()
    up = "\x1b[A"
    with chat(server, tmp_path) as terminal:
        terminal.type(up)
        terminal.expect("remember me")


def test_a_coordinator_that_is_lost_costs_one_line_and_the_chat_goes_on(
    server: BackgroundServer, tmp_path: Path
) -> None:
    server.engine.failure = UnavailableError("a stage was lost")
    server.engine.fail_after_tokens = 4
    with chat(server, tmp_path) as terminal:
        terminal.type("hi" + ENTER)
        came = terminal.expect("a stage was lost")
        assert "user" in came
        server.engine.fail_after_tokens = 0
        terminal.type("more" + ENTER)
        terminal.expect("a stage was lost")
        terminal.expect("/retry asks again")
        server.engine.failure = None
        terminal.type("/retry" + ENTER)
        terminal.expect("cut off after 40 tokens")
        terminal.type(CTRL_D)
        assert terminal.ended() == 0
        assert "Traceback" not in terminal.shown
    assert asked(server)[2] == [("user", "hi"), ("assistant", "user"), ("user", "more")]


def test_a_full_context_says_so_with_numbers_and_the_chat_goes_on(
    server: BackgroundServer, tmp_path: Path
) -> None:
    with chat(server, tmp_path, "--max-tokens", "2000") as terminal:
        for number in range(2):
            terminal.type(f"{number}" + ENTER)
            terminal.expect("cut off after 2000 tokens")
        terminal.type("more" + ENTER)
        terminal.expect(f"fills all {MAX_MODEL_LEN}")
        terminal.type("again" + ENTER)
        terminal.expect(f"holds {MAX_MODEL_LEN}")
        terminal.expect("/reset starts anew")
        terminal.type("/set drop-oldest on" + ENTER)
        terminal.expect("drop-oldest on")
        terminal.type("/retry" + ENTER)
        terminal.expect("the oldest turn was dropped")
        terminal.expect("cut off")
        terminal.type("/reset" + ENTER)
        terminal.expect("starts anew")
        terminal.type("new" + ENTER)
        terminal.expect("cut off after 2000 tokens")
        terminal.type(CTRL_D)
        assert terminal.ended() == 0
    *_, shortened, fresh = asked(server)
    assert [turn for turn in shortened if turn[0] == "user"] == [
        *(("user", "1"), ("user", "more"), ("user", "again"))
    ]
    assert fresh == [("user", "new")]


def test_lines_of_a_pipe_are_turns_and_answers_alone_are_on_stdout(
    server: BackgroundServer, tmp_path: Path
) -> None:
    path = tmp_path / "chat.json"
    lines = f'/system Be kind.\na\\\nb\n"""\nc\n"""\n/save {path}\n/stats\n'
    result = piped(server, lines, "--max-tokens", "6")
    assert (result.returncode, result.stdout) == (0, "system\nsystem\n")
    assert "first token after 5.0 ms" in result.stderr
    assert "\x1b" not in result.stderr
    assert asked(server)[1][1:] == [("user", "a\nb"), ("assistant", "system"), ("user", "c")]
    assert [turn["role"] for turn in json.loads(path.read_text())["messages"]] == [
        *("system", "user", "assistant", "user", "assistant")
    ]


def json_lines(text: str) -> Sequence[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_json_is_one_object_for_each_answer_also_for_those_that_fail(
    server: BackgroundServer,
) -> None:
    server.engine.failure = QueueFullError("full")
    server.engine.fail_after_tokens = 8
    result = piped(server, "/set max-tokens 2\na\n/set max-tokens 9\nb\n/nonsense\n", "--json")
    assert result.returncode == 1
    whole, failed = json_lines(result.stdout)
    assert set(whole) == set(failed)
    assert (whole["text"], whole["finish_reason"], whole["error"]) == ("us", "length", None)
    assert whole["usage"]["completion_tokens"] == 2
    assert (failed["text"], failed["finish_reason"], failed["usage"]) == (
        "user: a\n",
        "error",
        None,
    )
    assert failed["error"] == {"reason": "QUEUE_FULL", "message": "full"}
    assert "/nonsense" in result.stderr


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -15), (signal.SIGHUP, -1)]
)
def test_a_chat_of_a_pipe_that_is_ended_says_no_more(
    server: BackgroundServer, number: int, code: int
) -> None:
    server.engine.delay_s = 0.01
    with subprocess.Popen(
        COMMAND,
        cwd=ROOT,
        env={**os.environ, "STAGECOACH_COORDINATOR": server.address},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("a\n")
        process.stdin.flush()
        process.stdout.read(3)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=DEADLINE_S)
        assert (process.returncode, stderr) == (code, "")
    until(lambda: not server.engine.running)


def test_no_coordinator_exits_1_with_one_line() -> None:
    result = subprocess.run(
        [*COMMAND, "--coordinator", "127.0.0.1:1"],
        check=False,
        cwd=ROOT,
        input="hi\n",
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("coordinator-cli: coordinator at 127.0.0.1:1")
    assert result.stderr.count("\n") == 1
