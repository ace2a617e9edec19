"""guidellm, with a few requests."""

import json
import os
import subprocess
import sys
from pathlib import Path

DEMO, _ = sys.argv[1:]
Path("prompts.jsonl").write_text('{"prompt": "Once upon a time"}\n' * 4)
done = subprocess.run(
    [
        *(sys.executable, "-m", "guidellm", "benchmark", "run", "--target", DEMO),
        *("--model", "SmolLM2-135M-Instruct.Q4_1", "--profile", "synchronous"),
        *("--data", "prompts.jsonl", "--max-requests", "2", "--disable-console"),
        *("--output-dir", "."),
    ],
    env={**os.environ, "HF_HUB_OFFLINE": "1"},
    stdin=subprocess.DEVNULL,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    check=False,
)
assert done.returncode == 0, done.stdout
[benchmark] = json.loads(Path("benchmarks.json").read_text())["benchmarks"]
assert benchmark["metrics"]["request_totals"]["successful"] == 2, benchmark["metrics"]
