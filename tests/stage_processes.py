"""Stage servers as processes of their own, for signals that cannot be caught."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from stagecoach.contract.layer_range import LayerRange

START_DEADLINE_S = 300.0

MODULE = ("-m", "stage_server")


class StageProcess:
    """A stage server that can be killed, stopped and started again on its address."""

    def __init__(self, model: Path, layers: LayerRange, program: Sequence[str] = MODULE) -> None:
        self.address = "127.0.0.1:0"
        self._arguments = [
            *(*program, "--model", str(model), "--layers", str(layers)),
            *("--threads", "1", "--kv-memory", "1MiB", "--max-num-seqs", "16", "--json"),
        ]
        self._process: asyncio.subprocess.Process | None = None

    @property
    def process(self) -> asyncio.subprocess.Process:
        assert self._process is not None, "it was started"
        return self._process

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            *self._arguments,
            *("--listen", self.address),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        assert self._process.stdout is not None
        async with asyncio.timeout(START_DEADLINE_S):
            line = await self._process.stdout.readline()
        self.address = json.loads(line)["address"]

    def send(self, number: signal.Signals) -> None:
        os.kill(self.process.pid, number)

    async def kill(self) -> None:
        """Kills it with SIGKILL, as a crash or the out-of-memory killer would."""
        self.send(signal.SIGKILL)
        await self.process.wait()

    async def terminate(self) -> int:
        """Stops it with SIGTERM, which drains; returns its exit code."""
        self.send(signal.SIGTERM)
        return await self.process.wait()

    async def end(self) -> None:
        if self._process is not None and self._process.returncode is None:
            await self.kill()


@asynccontextmanager
async def stage_processes(
    model: Path, ranges: Sequence[LayerRange], program: Sequence[str] = MODULE
) -> AsyncIterator[list[StageProcess]]:
    """One for each range, all ready; killed at the end."""
    stages = [StageProcess(model, layers, program) for layers in ranges]
    try:
        await asyncio.gather(*(stage.start() for stage in stages))
        yield stages
    finally:
        await asyncio.gather(*(stage.end() for stage in stages))
