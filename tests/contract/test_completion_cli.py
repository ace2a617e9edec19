"""Tab completion as a shell asks for it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.terminal import DEADLINE_S, ROOT


def bash(script: str, home: Path) -> str:
    """Runs a script with both commands on its path; returns its stdout."""
    commands = home / "bin"
    commands.mkdir(exist_ok=True)
    for name, module in (("coordinator-cli", "coordinator.cli"), ("stage-server", "stage_server")):
        command = commands / name
        command.write_text(f'#!/bin/sh\ncd "{ROOT}" && exec "{sys.executable}" -m {module} "$@"\n')
        command.chmod(0o755)
    run = subprocess.run(
        ["bash", "--norc", "-c", script],
        check=True,
        env={**os.environ, "HOME": str(home), "PATH": f"{commands}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    return run.stdout


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home folder in which completion is installed."""
    home = tmp_path_factory.mktemp("home")
    for name in ("coordinator-cli", "stage-server"):
        assert "completion installed" in bash(f"{name} --install-completion; true", home)
    return home


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("coordinator-cli ch", ["chat"]),
        ("coordinator-cli status --wa", ["--watch"]),
        ("coordinator-cli plan --gpu rtx-309", ["rtx-3090-24gb", "rtx-3090-ti-24gb"]),
        ("coordinator-cli up --model dem", ["demo"]),
        ("coordinator-cli serve --model shape:llama-1", ["shape:llama-160m", "shape:llama-1b"]),
        ("coordinator-cli up --dtype float", ["float32", "float16"]),
        ("coordinator-cli plan --network 100g", ["100gbe"]),
        ("stage-server --engine em", ["emulated"]),
        ("stage-server --log-level d", ["debug"]),
    ],
)
def test_tab_completes_commands_flags_and_values(
    home: Path, line: str, expected: list[str]
) -> None:
    words = line.split()
    name = words[0]
    function = f"_{name.replace('-', '_')}_completion"
    script = (
        f"source ~/.bash_completions/{name}.sh; COMP_WORDS=({line}); "
        f"COMP_CWORD={len(words) - 1}; {function} {name}; "
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    assert bash(script, home).split() == expected
