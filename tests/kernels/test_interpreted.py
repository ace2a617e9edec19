"""Runs the tests of kernels that need Triton's interpreter, all in one process of their own.

Triton decides when it is imported whether kernels are compiled or interpreted.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton has no wheel for this machine")

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(path.name for path in Path(__file__).parent.glob("interpreted_*.py"))


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("which", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_kernels_equal_their_twins(which: str) -> None:
    files = [f"tests/kernels/{name}" for name in FILES]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", which, *files],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_there_are_such_files() -> None:
    assert len(FILES) >= 3
