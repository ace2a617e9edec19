"""How every command ends when there is nothing to talk to, and on Ctrl-C."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.contract.echo_engine import EchoEngine
from tests.contract.test_generation_client import BackgroundServer, until
from tests.terminal import CTRL_C, DEADLINE_S, ROOT, Terminal

COMMAND = (sys.executable, "-m", "coordinator.cli")

CLIENTS = (
    ("generate", "hi", "--max-tokens", "1"),
    ("chat",),
    ("status",),
    ("bench", "--batch", "1", "--repeats", "1"),
)


@pytest.fixture(scope="module")
def server() -> Iterator[BackgroundServer]:
    with BackgroundServer(EchoEngine(delay_s=0.05)) as server:
        yield server


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        check=False,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )


@pytest.mark.parametrize(
    ("address", "json_flag"),
    [("127.0.0.1:1", ()), ("127.0.0.1:1", ("--json",)), ("no-such-host.invalid:50050", ())],
)
@pytest.mark.parametrize("command", CLIENTS, ids=lambda command: command[0])
def test_an_address_that_leads_nowhere_is_one_line_and_exit_code_1(
    command: tuple[str, ...], address: str, json_flag: tuple[str, ...]
) -> None:
    result = run(*command, "--coordinator", address, *json_flag)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith(f"coordinator-cli: coordinator at {address}")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(("generate", "abc"), 130), (("bench", "--repeats", "9"), 130), (("status", "--watch"), 0)],
    ids=["generate", "bench", "status"],
)
def test_ctrl_c_in_a_terminal_ends_a_client_without_a_traceback(
    server: BackgroundServer, arguments: tuple[str, ...], code: int
) -> None:
    with Terminal([*COMMAND, *arguments, "--coordinator", server.address]) as terminal:
        if arguments[0] == "status":
            terminal.expect("prefix cache")
        else:
            until(lambda: bool(server.engine.running))
        terminal.type(CTRL_C)
        assert terminal.ended() == code
        assert "Traceback" not in terminal.shown
        assert "Error" not in terminal.shown
    until(lambda: not server.engine.running)


def test_ctrl_c_while_a_coordinator_waits_for_its_stages_ends_it_in_good_order() -> None:
    """It shows what it waits for, and tells its callers."""
    with socket.create_server(("127.0.0.1", 0)) as unused:
        stage = f"127.0.0.1:{unused.getsockname()[1]}"
    arguments = ("serve", "--model", "demo", "--stage", stage, "--listen", "127.0.0.1:0")
    with Terminal([*COMMAND, *arguments]) as terminal:
        assert terminal.expect("[coordinator.doors.grpc.server] address=")
        address = terminal.expect(" ").strip()
        terminal.expect(stage)
        terminal.expect("not reachable")
        result = run("status", "--coordinator", address)
        assert f"the coordinator is starting: stage {stage} is not reachable" in result.stderr
        terminal.type(CTRL_C)
        assert terminal.ended() == 0
        assert "Traceback" not in terminal.shown


@pytest.mark.parametrize("variable", ["NO_COLOR", None])
def test_colours_are_for_terminals_that_want_them(
    server: BackgroundServer, variable: str | None
) -> None:
    environment = {} if variable is None else {variable: "1"}
    watch = ("status", "--watch", "--coordinator", server.address)
    with Terminal([*COMMAND, *watch], environment) as terminal:
        terminal.expect("prefix cache")
        terminal.type(CTRL_C)
        assert terminal.ended() == 0
        assert bool(re.search(r"\x1b\[[0-9;]*3[0-7]m", terminal.raw)) == (variable is None)
    arguments = ("generate", "abc", "--max-tokens", "1", "--stats")
    piped = subprocess.run(
        [*COMMAND, *arguments, "--coordinator", server.address],
        check=True,
        cwd=ROOT,
        env={**os.environ, "TERM": "xterm-256color"},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert "\x1b" not in piped.stdout + piped.stderr


def test_the_prompt_may_come_from_stdin_by_the_name_of_a_file(server: BackgroundServer) -> None:
    result = subprocess.run(
        [*COMMAND, "generate", "--file", "-", "--max-tokens", "2", "--coordinator", server.address],
        check=False,
        cwd=ROOT,
        input="hi\n",
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert (result.returncode, result.stdout) == (0, "hi\n")


def test_a_signal_ends_a_stage_server_that_loads() -> None:
    arguments = ("--model", "demo", "--layers", "0:2", "--listen", "127.0.0.1:0")
    with Terminal([sys.executable, "-m", "stage_server", *arguments]) as terminal:
        terminal.expect("listening ")
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.ended() == 0
        assert "Traceback" not in terminal.shown


def in_shell(script: str) -> subprocess.CompletedProcess[str]:
    """Runs a command whose standard streams a shell redirects; `$0` is Python."""
    return subprocess.run(
        ["sh", "-c", script, sys.executable],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )


def test_a_closed_stdin_holds_no_prompt() -> None:
    result = in_shell('"$0" -m coordinator.cli generate <&-')
    assert result.returncode == 2
    assert result.stderr.startswith("coordinator-cli: no prompt: give PROMPT, --file or")


def test_closed_streams_are_no_fault(server: BackgroundServer) -> None:
    script = f'"$0" -m coordinator.cli {{}} --coordinator {server.address} <&- >&- 2>&-'
    for command in ("generate hi --max-tokens 2", "chat", "status", "status --json"):
        assert in_shell(script.format(command)).returncode == 0
    assert not server.engine.running


@pytest.mark.parametrize(
    "command",
    [
        "coordinator.cli --help",
        "coordinator.cli --version",
        "coordinator.cli plan --model shape:llama-2-7b --gpu rtx-3060-12gb --gpu rtx-3060-12gb",
        "stage_server --help",
        "stage_server --version",
    ],
)
@pytest.mark.parametrize("mode", ["-u", ""], ids=["unbuffered", "buffered"])
def test_what_cannot_be_written_is_one_line(command: str, mode: str) -> None:
    result = in_shell(f'"$0" {mode} -m {command} >/dev/full')
    assert result.returncode == 1
    assert result.stderr.endswith("No space left on device\n")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("mode", ["-u", ""], ids=["unbuffered", "buffered"])
def test_output_that_nobody_reads_ends_a_command_quietly(
    server: BackgroundServer, mode: str
) -> None:
    """The reader is there no more when the command begins to write."""
    command = f"coordinator.cli status --json --coordinator {server.address}"
    script = f'{{ sleep 0.1; "$0" {mode} -m {command}; echo "code $?" >&2; }} | true'
    assert in_shell(script).stderr == "code 141\n"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("status", "--coordinator", "127.0.0.1:\u0665\u0660"), "must be HOST:PORT"),
        (("health", "127.0.0.1:00000000080"), "must be HOST:PORT"),
        (("status", "--coordinator", b"lo\xff:50"), "must be HOST:PORT"),
        (("generate", "x", "--timeout-s", "nan"), "--timeout-s is nan, must be above 0"),
        (("chat", "--timeout-s", "0"), "--timeout-s is 0.0, must be above 0"),
        (("status", "--timeout-s", "-1"), "--timeout-s is -1.0, must be above 0"),
    ],
    ids=str,
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    arguments: tuple[str | bytes, ...], told: str
) -> None:
    result = run(*map(os.fsdecode, arguments))
    assert (result.returncode, result.stdout) == (2, "")
    assert told in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("timeout_s", ["inf", "9e9"])
@pytest.mark.parametrize("command", [*CLIENTS[:3], ("health",)], ids=lambda command: command[0])
def test_an_endless_time_limit_is_none(
    server: BackgroundServer, command: tuple[str, ...], timeout_s: str
) -> None:
    where = (server.address,) if command == ("health",) else ("--coordinator", server.address)
    assert run(*command, *where, "--timeout-s", timeout_s).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--file", "/"), "cannot read --file /: Is a directory"),
        (("x", "--json-schema", "/"), "cannot read --json-schema /: Is a directory"),
        (("--file", "/no-such"), "cannot read --file /no-such: No such file or directory"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(arguments: tuple[str, ...], told: str) -> None:
    result = run("generate", *arguments)
    assert (result.returncode, result.stderr) == (1, f"coordinator-cli: {told}\n")
