"""F36 over the kernel's own TCP: slow, lossy, jittery and interrupted links between namespaces.

Emulated stages answer with hidden states of the real size of a model of 1B parameters: 4 kB a
token, 4 MB a long prompt. What they answer depends on nothing but the tokens before, so a text over
a bad wire equals that over a good one.
"""

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults.oracle import KEEPALIVE_BOUND_S
from tests.faults.packet_wire import Line, PacketWire, missing
from tests.faults.server_processes import ServerProcess
from tests.faults.waiting import eventually

MODEL = "shape:llama-1b"
RANGES = ("0:8", "8:15", "15:22")
PORT = 50051
PROMPT_TOKENS = 1000
OUTPUT_TOKENS = 6
REQUEST_TIMEOUT_S = 280.0

SLOW = Line(bits_per_s=2e6)
GOOD = Line()

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


class Machines:
    """A coordinator and three stages, each on a machine of its own."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.wire = stack.enter_context(PacketWire(1 + len(RANGES)))
        stages = [
            stack.enter_context(self._server(1 + index, folder, "stage_server", layers))
            for index, layers in enumerate(RANGES)
        ]
        for stage in stages:
            stage.ready_line()
        arguments = [
            text for address in self.wire.addresses[1:] for text in ("--stage", f"{address}:{PORT}")
        ]
        self.coordinator = stack.enter_context(
            ServerProcess(
                "coordinator.cli",
                ["serve", "--model", MODEL, "--no-http", "--no-prefix-cache", *arguments],
                folder=folder,
                prefix=self.wire.on(0),
            )
        )
        self._door = self.coordinator.ready_line()["grpc"]

    def _server(self, machine: int, folder: Path, module: str, layers: str) -> ServerProcess:
        address = f"{self.wire.addresses[machine]}:{PORT}"
        arguments = ["--model", MODEL, "--layers", layers, "--listen", address, "--insecure-bind"]
        arguments += ["--engine", "emulated", "--emulate", "rtx-3060-12gb"]
        return ServerProcess(module, arguments, folder=folder, prefix=self.wire.on(machine))

    @property
    def num_losses(self) -> int:
        return self.coordinator.log.count("stage lost")

    async def generate(self, start: int, num_prompt_tokens: int, num_tokens: int) -> list[int]:
        """What a prompt is continued with."""
        prompt = ",".join(str(3 + (start + index) % 30_000) for index in range(num_prompt_tokens))
        process = await asyncio.create_subprocess_exec(
            *self.wire.on(0),
            *(sys.executable, "-m", "coordinator.cli", "generate", "--json"),
            *("--coordinator", str(self._door), "--prompt-token-ids", prompt),
            *("--max-tokens", str(num_tokens), "--ignore-eos"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                out, err = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
        assert process.returncode == 0, err.decode()
        token_ids: list[int] = json.loads(out)["token_ids"]
        return token_ids


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    if (reason := missing()) is not None:
        pytest.skip(reason)
    with ExitStack() as stack:
        yield Machines(tmp_path_factory.mktemp("machines"), stack)


async def check_long_prompt(machines: Machines, start: int) -> None:
    """Asserts that a prompt is continued over the wire as it is now as it is over a good one."""
    num_before = machines.num_losses
    token_ids = await machines.generate(start, PROMPT_TOKENS, OUTPUT_TOKENS)
    machines.wire.become(GOOD)
    assert machines.num_losses == num_before
    assert token_ids == await machines.generate(start, PROMPT_TOKENS, OUTPUT_TOKENS)


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(SLOW, id="2-mbit"),
        pytest.param(replace(SLOW, delay_s=0.1, loss=0.01), id="2-mbit-far-and-lossy"),
        pytest.param(replace(SLOW, bits_per_s=10e6), id="10-mbit"),
        pytest.param(
            Line(bits_per_s=20e6, delay_s=0.002, jitter_s=0.06, loss=0.02), id="bad-wi-fi"
        ),
    ],
)
async def test_f36_a_long_prompt_is_served_over_slow_links(machines: Machines, line: Line) -> None:
    machines.wire.become(line, 1, 2, 3)
    await check_long_prompt(machines, start=100)


async def test_f36_three_stages_behind_one_slow_uplink_serve_several_prompts(
    machines: Machines,
) -> None:
    num_before = machines.num_losses
    machines.wire.become(SLOW, 0)
    prompts = [(1000 * index, 40 if index == 2 else 350) for index in range(4)]
    outputs = await asyncio.gather(*(machines.generate(*one, OUTPUT_TOKENS) for one in prompts))
    machines.wire.become(GOOD)
    assert machines.num_losses == num_before
    for one, token_ids in zip(prompts, outputs, strict=True):
        assert token_ids == await machines.generate(*one, OUTPUT_TOKENS)


async def test_f36_a_slow_link_that_is_down_for_seconds_again_and_again_is_not_lost(
    machines: Machines,
) -> None:
    machines.wire.become(SLOW, 1, 2, 3)
    serving = asyncio.create_task(check_long_prompt(machines, start=200))
    for _ in range(3):
        await asyncio.sleep(8.0)
        machines.wire.become(replace(SLOW, is_down=True), 2)
        await asyncio.sleep(3.0)
        machines.wire.become(SLOW, 2)
    await serving


async def test_f15_an_idle_stage_whose_machine_vanished_is_lost_and_found_again(
    machines: Machines,
) -> None:
    expected = await machines.generate(300, 20, OUTPUT_TOKENS)
    num_before = machines.num_losses
    machines.wire.become(replace(GOOD, is_down=True), 2)
    await eventually(
        lambda: machines.num_losses > num_before, within_s=KEEPALIVE_BOUND_S, what="it is lost"
    )
    machines.wire.become(GOOD)
    assert await machines.generate(300, 20, OUTPUT_TOKENS) == expected
