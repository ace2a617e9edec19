"""promptfoo, with a prompt, two questions, and what is expected of the answers."""

import json
import os
import subprocess
import sys
from pathlib import Path

DEMO, _ = sys.argv[1:]
provider = {
    "id": "openai:chat:SmolLM2-135M-Instruct.Q4_1",
    "config": {"apiBaseUrl": f"{DEMO}/v1", "apiKey": "none", "temperature": 0, "max_tokens": 12},
}
tests = [
    {"vars": {"land": land}, "assert": [{"type": "contains", "value": word}]}
    for land, word in (("France", "Paris"), ("Italy", "Italy"))
]
Path("promptfooconfig.json").write_text(
    json.dumps(
        {
            "prompts": ["What is the capital of {{land}}?"],
            "providers": [provider],
            "tests": tests,
        }
    )
)
done = subprocess.run(
    ["promptfoo", "eval", "-c", "promptfooconfig.json", "-o", "out.json", "--no-cache"],
    env={
        **os.environ,
        "PROMPTFOO_DISABLE_TELEMETRY": "1",
        "PROMPTFOO_DISABLE_UPDATE": "1",
        "PROMPTFOO_CONFIG_DIR": str(Path.cwd()),
    },
    stdin=subprocess.DEVNULL,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    check=False,
)
assert done.returncode == 0, done.stdout
stats = json.loads(Path("out.json").read_text())["results"]["stats"]
assert (stats["successes"], stats["failures"], stats["errors"]) == (2, 0, 0), done.stdout
