"""guidellm, with a few requests."""

import json
import os
import subprocess
import sys
from pathlib import Path

DEMO, _ = sys.argv[1:]
row = {"prompt": "Once upon a time", "output_tokens_count": 4}
Path("prompts.jsonl").write_text(4 * f"{json.dumps(row)}\n")
done = subprocess.run(
    [
        *(sys.executable, "-m", "guidellm", "run", "--disable-console"),
        *("--backend", f"kind=openai_http,target={DEMO},model=SmolLM2-135M-Instruct.Q4_1"),
        *("--data", "kind=json_file,path=prompts.jsonl", "--profile", "kind=synchronous"),
        *("--constraint", "kind=max_requests,count=2", "--output", "kind=json,path=out.json"),
    ],
    env={**os.environ, "HF_HUB_OFFLINE": "1"},
    stdin=subprocess.DEVNULL,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    check=False,
)
assert done.returncode == 0, done.stdout
[benchmark] = json.loads(Path("out.json").read_text())["benchmarks"]
assert benchmark["metrics"]["request_totals"]["successful"] == 2, benchmark["metrics"]
