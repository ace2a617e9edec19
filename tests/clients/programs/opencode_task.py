"""opencode, which is told to run a command; it asks for a title of the conversation too."""

import json
import subprocess
import sys
from pathlib import Path

_, SCRIPTED = sys.argv[1:]
Path("opencode.json").write_text(
    json.dumps(
        {
            "$schema": "https://opencode.ai/config.json",
            "autoupdate": False,
            "share": "disabled",
            "model": "stagecoach/scripted",
            "permission": "allow",
            "provider": {
                "stagecoach": {
                    "npm": "@ai-sdk/openai-compatible",
                    "name": "Stagecoach",
                    "options": {"baseURL": f"{SCRIPTED}/v1", "apiKey": "none"},
                    "models": {"scripted": {"name": "Scripted"}},
                }
            },
        }
    )
)
done = subprocess.run(
    ["opencode", "run", "Say hello."],
    stdin=subprocess.DEVNULL,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    check=False,
)
assert done.returncode == 0, done.stdout
assert "All done." in done.stdout, done.stdout
assert Path("said.txt").read_text() == "hello\n", done.stdout
