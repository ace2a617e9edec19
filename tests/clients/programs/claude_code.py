"""Claude Code, which is told to run a command."""

import json
import os
import subprocess
import sys
from pathlib import Path

_, SCRIPTED = sys.argv[1:]
done = subprocess.run(
    ["claude", "-p", "Say hello.", "--allowedTools", "Bash", "--output-format", "json"],
    env={
        **os.environ,
        "ANTHROPIC_BASE_URL": SCRIPTED,
        "ANTHROPIC_API_KEY": "none",
        "ANTHROPIC_MODEL": "scripted",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    },
    stdin=subprocess.DEVNULL,
    stdout=subprocess.PIPE,
    text=True,
    check=False,
)
assert done.returncode == 0, done.stdout
assert json.loads(done.stdout)["result"] == "All done.", done.stdout
assert Path("said.txt").read_text() == "hello\n"
