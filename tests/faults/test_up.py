"""F12 and F13: `coordinator-cli up` and its children, when one side dies or cannot start."""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults.oracle import check_ended
from tests.faults.server_processes import is_running
from tests.faults.waiting import eventually

START_S = 300.0
CHILDREN_END_S = 10.0


@contextmanager
def up(model: Path, *flags: str) -> "Iterator[subprocess.Popen[str]]":
    """The command, with pipes to it; killed at the end if it still runs."""
    command = [sys.executable, "-m", "coordinator.cli", "up", "--model", str(model)]
    with subprocess.Popen(
        [*command, "--threads", "1", "--grpc-port", "0", "--json", *flags],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def arguments(num_stages: int, kv_memory: str) -> Sequence[str]:
    return ("--stages", str(num_stages), "--kv-memory", kv_memory)


@pytest.mark.slow
async def test_f12_children_end_when_the_process_that_started_them_is_killed(model: Path) -> None:
    with up(model, *arguments(2, "1MiB")) as process:
        assert process.stdout is not None
        ready = json.loads(await asyncio.to_thread(process.stdout.readline))
        stages = ready["stages"]
        pids = [ready["pid"], *(stage["pid"] for stage in stages)]
        assert all(map(is_running, pids))
        process.kill()
        await eventually(
            lambda: not any(map(is_running, pids)),
            within_s=CHILDREN_END_S,
            what="all children have ended",
        )
        check_ended(pids, [ready["grpc"], *(stage["address"] for stage in stages)])


@pytest.mark.slow
async def test_f13_a_stage_that_cannot_start_is_named_and_nothing_is_started_again_and_again(
    model: Path,
) -> None:
    started_s = time.monotonic()
    with up(model, *arguments(1, "4TiB")) as process:
        stdout, stderr = await asyncio.to_thread(process.communicate, None, START_S)
    assert process.returncode == 1
    assert stdout == ""
    assert "Traceback" not in stderr
    last = stderr.splitlines()[-1]
    assert "stage 0 (layers 0:6)" in last
    assert "--kv-memory asks for" in last
    assert time.monotonic() - started_s < START_S
