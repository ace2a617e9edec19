"""aider, which writes a file."""

import os
import subprocess
import sys
from pathlib import Path

_, SCRIPTED = sys.argv[1:]
done = subprocess.run(
    [
        *(sys.executable, "-m", "aider", "--model", "openai/scripted", "--edit-format", "whole"),
        *("--no-git", "--yes-always", "--no-check-update", "--no-show-model-warnings"),
        *("--analytics-disable", "--message", "Write hello.py.", "hello.py"),
    ],
    env={**os.environ, "OPENAI_API_BASE": f"{SCRIPTED}/v1", "OPENAI_API_KEY": "none"},
    stdin=subprocess.DEVNULL,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    check=False,
)
assert done.returncode == 0, done.stdout
assert Path("hello.py").read_text() == 'print("hello")\n', done.stdout
