"""The check of a card, run on the CPU with tiny models, as a person with a card would run it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

DEADLINE_S = 1000
"""The program's own is for a card, not for a machine that does other things."""


def check_cpu(output: Path, only: str) -> dict[str, Any]:
    """Runs some checks, which must pass; what the report says as JSON.

    Args:
        output: For the report.
        only: Names of checks, with commas.
    """
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--device", "cpu", "--quick"]
    command += ["--only", only, "--deadline-s", str(DEADLINE_S), "--output", str(output)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    page = (output / "report.md").read_text()
    assert done.returncode == 0, page
    assert done.stdout.rstrip() == page.rstrip()
    content: dict[str, Any] = json.loads((output / "report.json").read_text())
    assert content["passed"]
    return content


def rows_of(report: dict[str, Any], check: str) -> dict[str, dict[str, Any]]:
    """The rows of one check, by their names."""
    (found,) = (each for each in report["checks"] if each["check"] == check)
    return {row["name"]: row for row in found["rows"]}
