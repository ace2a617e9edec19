"""Codex, which is told to run a command."""

import os
import subprocess
import sys
from pathlib import Path

_, SCRIPTED = sys.argv[1:]
home = Path("codex-home")
home.mkdir()
(home / "config.toml").write_text(f"""
model = "scripted"
model_provider = "stagecoach"

[model_providers.stagecoach]
name = "Stagecoach"
base_url = "{SCRIPTED}/v1"
wire_api = "responses"
""")
done = subprocess.run(
    # Its own sandbox needs privileges that a container may lack.
    [
        "codex",
        "exec",
        "--skip-git-repo-check",
        "--dangerously-bypass-approvals-and-sandbox",
        "--output-last-message",
        "last.txt",
        "Say hello.",
    ],
    env={**os.environ, "CODEX_HOME": str(home.absolute())},
    stdin=subprocess.DEVNULL,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    check=False,
)
assert done.returncode == 0, done.stdout
assert Path("last.txt").read_text() == "All done.", done.stdout
assert Path("said.txt").read_text() == "hello\n", done.stdout
