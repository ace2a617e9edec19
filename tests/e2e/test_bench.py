"""`coordinator-cli bench` over emulated stages as processes: figures, limit, picture, timeline."""

import json
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from stagecoach.client import Client

ROOT = Path(__file__).resolve().parents[2]
CLI = (sys.executable, "-m", "coordinator.cli")
NUM_STAGES = 3

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A coordinator of three emulated cards."""
    arguments = ["up", "--model", "shape:llama-1b", "--stages", str(NUM_STAGES), "--json"]
    emulation = ["--engine", "emulated", "--emulate", "rtx-3060-12gb", "--grpc-port", "0"]
    with subprocess.Popen(
        [*CLI, *arguments, *emulation], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, f"up ended with exit code {process.wait()}"
        try:
            yield json.loads(line)["grpc"]
        finally:
            process.terminate()


def run_bench(address: str, *arguments: str) -> dict[str, Any]:
    command = [*CLI, "bench", "--coordinator", address, "--json", *arguments]
    result = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True)
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer


def test_the_figures_have_the_shape_of_the_contract_and_obey_the_limit(address: str) -> None:
    arguments = ("--batch", "1,4", "--prompt-tokens", "16", "--output-tokens", "12")
    answer = run_bench(address, *arguments, "--repeats", "2")
    assert answer["emulated"] is True
    assert len(answer["stages"]) == NUM_STAGES
    assert {stage["device"] for stage in answer["stages"]} == {"emulated rtx-3060-12gb"}
    assert [row["batch"] for row in answer["rows"]] == [1, 4]
    for row in answer["rows"]:
        assert 0 < row["tokens_per_s_min"] <= row["tokens_per_s"] <= row["tokens_per_s_max"]
        assert row["tokens_per_s"] < row["limit_tokens_per_s"]
        parts = row["ms_per_step"]
        assert set(parts) == {
            *("compute", "wire", "serialize", "queue", "schedule", "sample", "other")
        }
        # 2.2 GB of weights less the embedding, at 360 GB/s
        assert parts["compute"] > 2.0e9 / 360e9 * 1e3


def test_the_timeline_has_a_row_a_stage_without_overlaps_inside_the_run(
    address: str, tmp_path: Path
) -> None:
    plot, trace = tmp_path / "bench.png", tmp_path / "trace.json"
    arguments = ("--batch", "3", "--prompt-tokens", "16", "--output-tokens", "8")
    files = ("--plot", str(plot), "--trace", str(trace))
    run_bench(address, *arguments, "--repeats", "1", *files)
    assert plot.read_bytes().startswith(b"\x89PNG")
    content = json.loads(trace.read_text())
    assert content["otherData"] == {"model": "shape:llama-1b", "emulated": True, "lost_steps": 0}
    events = content["traceEvents"]
    names = [one["args"]["name"] for one in events if one["name"] == "process_name"]
    assert all("EMULATED" in name for name in names)
    slices = [one for one in events if one["ph"] == "X"]
    steps = [one for one in slices if one["name"].startswith("micro-batch ")]
    assert sum(one["args"]["sequences"] for one in steps) >= 3 * 8
    start = min(one["ts"] for one in steps)
    end = max(one["ts"] + one["dur"] for one in steps)
    for row in range(NUM_STAGES + 1):
        on_row = [one for one in slices if (one["pid"], one["tid"]) == (1, row)]
        on_row.sort(key=lambda one: one["ts"])
        assert {"compute", "wire"} <= {one["name"] for one in on_row} or row == 0
        for before, after in pairwise(on_row):
            assert before["ts"] + before["dur"] <= after["ts"] + 1e-3  # rounding, in us
        assert start <= on_row[0]["ts"]
        work = [one for one in on_row if one["name"] != "detokenize"]  # which follows the sampling
        assert work[-1]["ts"] + work[-1]["dur"] <= end + 1e-3


def test_the_prefix_cache_helps_only_when_that_is_asked_for(address: str) -> None:
    arguments = ("--batch", "2", "--prompt-tokens", "40", "--output-tokens", "4", "--repeats", "1")
    with Client(address) as client:
        for _ in range(2):  # the second run must not find the prompts of the first
            run_bench(address, *arguments)
        assert client.status().num_prefix_hit_tokens == 0
        run_bench(address, *arguments, "--same-prompt")
        assert client.status().num_prefix_hit_tokens > 0


def test_a_batch_that_cannot_run_at_once_is_refused_with_the_numbers(address: str) -> None:
    command = [*CLI, "bench", "--coordinator", address, "--batch", "1,5000"]
    result = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (1, "")
    assert "batch 5000 is more than the 256 requests" in result.stderr
