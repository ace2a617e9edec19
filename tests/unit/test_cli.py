"""The command line without a cluster: help, bad usage, ranges of layers."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from coordinator.cli.app import app
from coordinator.cli.shared.failures import reported_failures
from coordinator.config import CoordinatorConfig

ROOT = Path(__file__).resolve().parents[2]


def run_cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "coordinator.cli", *arguments],
        check=False,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("flags", "variable", "expected"),
    [
        ((), None, True),
        ((), "false", False),
        (("--no-prefix-cache",), None, False),
        (("--prefix-cache",), "0", True),
    ],
)
def test_serve_takes_the_prefix_cache_from_the_flag_or_else_the_environment(
    monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], variable: str | None, expected: bool
) -> None:
    configs: list[CoordinatorConfig] = []
    monkeypatch.setattr("coordinator.process.run", lambda config, **_: configs.append(config))
    if variable is not None:
        monkeypatch.setenv("STAGECOACH_PREFIX_CACHE", variable)
    arguments = ("serve", "--model", "demo", "--stage", "h:1", *flags)
    app(list(arguments), standalone_mode=False)
    assert [config.clusters[0].prefix_cache for config in configs] == [expected]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ((), "127.0.0.1:8000"),
        (("--listen", "127.0.0.1:0"), "127.0.0.1:0"),
        (("--listen", "127.0.0.1:0", "--http-listen", "[::1]:8080"), "[::1]:8080"),
        (("--no-http",), None),
    ],
)
def test_serve_has_http_on_loopback_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], expected: str | None
) -> None:
    configs: list[CoordinatorConfig] = []
    monkeypatch.setattr("coordinator.process.run", lambda config, **_: configs.append(config))
    app(["serve", "--model", "demo", "--stage", "h:1", *flags], standalone_mode=False)
    assert [http and str(http) for http in (config.http_listen for config in configs)] == [expected]


@pytest.mark.parametrize(
    "command",
    [(), ("up",), ("serve",), ("generate",), ("chat",), ("status",), ("plan",), ("bench",)],
)
def test_every_command_has_help(command: tuple[str, ...]) -> None:
    result = run_cli(*command, "--help")
    assert result.returncode == 0
    assert "Usage: coordinator-cli" in result.stdout


def test_the_help_of_up_tells_the_threads_that_a_stage_takes() -> None:
    help_text = " ".join(run_cli("up", "--help").stdout.split())
    assert "Default: the physical cores; 1 if emulated." in help_text


def test_help_loads_no_heavy_library() -> None:
    program = (
        "import sys; from coordinator.cli.app import app; app(['generate', '--help'], "
        "standalone_mode=False); "
        "print([m for m in ('torch', 'transformers', 'numpy', 'grpc', 'tokenizers') "
        "if m in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], check=True, cwd=ROOT, capture_output=True, text=True
    )
    assert run.stdout.splitlines()[-1] == "[]"


def test_generate_loads_neither_torch_nor_a_tokenizer() -> None:
    program = (
        "import sys; import coordinator.cli.app, coordinator.cli.shared.completion_output; "
        "print([m for m in ('torch', 'transformers', 'numpy', 'tokenizers') if m in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], check=True, cwd=ROOT, capture_output=True, text=True
    )
    assert run.stdout.strip() == "[]"


def test_the_version_is_printed() -> None:
    from stagecoach.version import __version__

    assert run_cli("--version").stdout == f"coordinator-cli {__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("fly",),
        ("up",),
        ("up", "--model", "demo", "--stages", "0"),
        ("up", "--model", "demo", "--stages", "17"),
        ("up", "--model", "demo", "--stages", "2", "--grpc-port", "65536"),
        ("serve", "--model", "demo"),
    ],
)
def test_flags_that_do_not_parse_exit_2(arguments: tuple[str, ...]) -> None:
    result = run_cli(*arguments)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("up", "--model", "demo"), "either --stages or --layers"),
        (("up", "--model", "demo", "--stages", "2", "--layers", "0:30"), "either"),
        (("up", "--model", "demo", "--layers", "0-30"), "START:END"),
        (("up", "--model", "demo", "--layers", "0:29"), "0:30"),
        (("up", "--model", "demo", "--layers", "0:10", "--layers", "11:30"), "0:30"),
        (("up", "--model", "demo", "--layers", "0:10", "--layers", "9:30"), "0:30"),
        (("up", "--model", "demo", "--layers", "10:30", "--layers", "0:10"), "0:30"),
        (("serve", "--model", "demo", "--stage", "here"), "HOST:PORT"),
        (("serve", "--model", "demo", "--stage", "a:1", "--stage", "a:1"), "twice"),
        (("serve", "--model", "demo", "--stage", "a:1", "--listen", "x"), "HOST:PORT"),
        (("serve", "--model", "demo", "--stage", "a:1", "--http-listen", "x"), "HOST:PORT"),
        (
            ("serve", "--model", "demo", "--stage", "a:1", "--no-http", "--http-listen", "a:1"),
            "either --http-listen or --no-http",
        ),
        (
            ("up", "--model", "demo", "--stages", "1", "--no-http", "--http-port", "1"),
            "either --http-port or --no-http",
        ),
        (
            ("serve", "--model", "demo", "--stage", "a:1", "--max-num-seqs", "0"),
            "--max-num-seqs is 0",
        ),
    ],
)
def test_values_that_make_no_sense_exit_2_with_one_line(
    arguments: tuple[str, ...], part: str
) -> None:
    result = run_cli(*arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("coordinator-cli: ")
    assert result.stderr.count("\n") == 1
    assert part in result.stderr


@pytest.mark.parametrize("command", [("up", "--stages", "2"), ("serve", "--stage", "a:1")])
def test_a_model_that_is_not_there_exits_1_with_one_line(
    command: tuple[str, ...], tmp_path: Path
) -> None:
    result = run_cli(*command, "--model", str(tmp_path / "none.gguf"))
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.splitlines()[-1].startswith("coordinator-cli: ")
    assert "none.gguf" in result.stderr
    assert "Traceback" not in result.stderr


def test_what_nobody_foresaw_exits_1_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as caught, reported_failures():
        raise ZeroDivisionError("divided\nby zero")
    assert caught.value.exit_code == 1
    told = "coordinator-cli: failed unexpectedly: divided by zero (ZeroDivisionError)\n"
    assert capsys.readouterr().err == told


@pytest.mark.parametrize("ending", [typer.Exit(5), typer.Abort(), typer.BadParameter("x")])
def test_what_the_command_line_itself_raises_passes(ending: Exception) -> None:
    with pytest.raises(type(ending)) as caught, reported_failures():
        raise ending
    assert caught.value is ending


def test_a_signal_ends_a_coordinator_that_waits_for_its_model(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent_hub:
        silent_hub.settimeout(60)
        hub = {
            "HF_ENDPOINT": f"http://127.0.0.1:{silent_hub.getsockname()[1]}",
            "HF_HOME": str(tmp_path),
            "HF_HUB_OFFLINE": "0",
            "NO_PROXY": "127.0.0.1",
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "coordinator.cli", "serve", "--model", "a/b", "--stage", "a:1"],
            cwd=ROOT,
            env={**os.environ, **hub},
            stdin=subprocess.DEVNULL,
        )
        try:
            connection, _ = silent_hub.accept()
            with connection:
                connection.recv(1)
                process.terminate()
                assert process.wait(5) == -signal.SIGTERM
        finally:
            process.kill()
            process.wait()
