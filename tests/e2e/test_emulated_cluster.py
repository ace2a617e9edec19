"""A cluster of emulated cards as processes: a 13B model on any machine, at the cards' pace."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stagecoach.client import Client
from tests.emulated_tokens import expected_token

ROOT = Path(__file__).resolve().parents[2]
CLI = (sys.executable, "-m", "coordinator.cli")
PROMPT = [1, 15043, 3186]
NUM_TOKENS = 8

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A coordinator of three emulated RTX 3060."""
    arguments = ["up", "--model", "shape:llama-2-13b", "--stages", "3", "--grpc-port", "0"]
    emulation = ["--engine", "emulated", "--emulate", "rtx-3060-12gb", "--efficiency", "0.9"]
    # KV fills the cards, and not what other tests give to their stages.
    environment = {key: os.environ[key] for key in os.environ if key != "STAGECOACH_KV_MEMORY"}
    with subprocess.Popen(
        [*CLI, *arguments, *emulation, "--json"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, f"up ended with exit code {process.wait()}"
        try:
            yield json.loads(line)["grpc"]
        finally:
            process.terminate()


def test_it_generates_token_ids_no_faster_than_the_cards(address: str) -> None:
    with Client(address) as client:
        done = client.complete(PROMPT, max_tokens=NUM_TOKENS)
    expected = list(PROMPT)
    for _ in range(NUM_TOKENS):
        expected.append(expected_token(expected))
    assert list(done.token_ids) == expected[len(PROMPT) :]
    compute_s = sum(stage.compute_ns for stage in done.timings.stages) / 1e9
    # 26.03 GB of weights less the embedding, every step, at 0.9 of 360 GB/s.
    assert compute_s >= NUM_TOKENS * (26.03e9 - 0.33e9) / 360e9 / 0.9


def test_status_says_that_it_is_emulated(address: str) -> None:
    command = [*CLI, "status", "--coordinator", address]
    table = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert "ready, emulated" in table
    assert table.count("emulated rtx-3060-12gb") == 3
    as_json = subprocess.run(
        [*command, "--json"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    status: dict[str, Any] = json.loads(as_json)
    assert not status["has_tokenizer"]
    for stage in status["stages"]:
        assert stage["emulated"]
        assert stage["dtype"] == "float16"
        assert stage["weight_bytes"] > 8e9
        assert 2.5e9 < stage["kv_bytes"] < 4e9


def test_every_stage_may_emulate_a_card_of_its_own() -> None:
    stages = ["--layers", "0:29", "--emulate", "rtx-3090-24gb"]
    stages += ["--layers", "29:40", "--emulate", "rtx-3060-12gb"]
    command = [*CLI, "up", "--model", "shape:llama-2-13b", "--grpc-port", "0", "--json"]
    with subprocess.Popen(
        [*command, "--engine", "emulated", *stages], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            with Client(json.loads(process.stdout.readline())["grpc"]) as client:
                devices = [stage.device for stage in client.status().stages]
        finally:
            process.terminate()
    assert devices == ["emulated rtx-3090-24gb", "emulated rtx-3060-12gb"]


def test_a_number_of_cards_that_fits_no_stages_is_refused() -> None:
    command = [*CLI, "up", "--model", "shape:llama-2-13b", "--stages", "3", "--grpc-port", "0"]
    result = subprocess.run(
        [*command, "--engine", "emulated", *(["--emulate", "t4-16gb"] * 2)],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert "2 GPUs to emulate given" in result.stderr.splitlines()[-1]


def test_a_card_that_is_not_known_is_answered_with_near_names() -> None:
    command = [*CLI, "up", "--model", "shape:llama-2-13b", "--stages", "3", "--grpc-port", "0"]
    result = subprocess.run(
        [*command, "--engine", "emulated", "--emulate", "rtx3060"],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert "did you mean rtx-3060-8gb, rtx-3060-12gb" in result.stderr.splitlines()[-1]


def test_cards_that_are_too_small_are_refused_with_the_numbers() -> None:
    command = [*CLI, "up", "--model", "shape:llama-2-13b", "--stages", "2", "--grpc-port", "0"]
    result = subprocess.run(
        [*command, "--engine", "emulated", "--emulate", "rtx-3060-12gb"],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    last_line = result.stderr.splitlines()[-1]
    assert "layers 0:20 take 13" in last_line or "layers 20:40 take 13" in last_line
