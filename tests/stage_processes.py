"""Stage servers as processes of their own, for signals that cannot be caught.

They are forked, as those of `up` are, so that torch is imported once.
"""

import asyncio
import atexit
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from coordinator.cli.cluster.child import Child, Process, spawn
from coordinator.cli.cluster.stage_forks import StageForks, _Server
from stagecoach.contract.layer_range import LayerRange
from tests.child_processes import kept_ids
from tests.orphans import adopted_orphans

START_DEADLINE_S = 300.0

_kept: list[_Server] = []
"""What stages were forked from before: importing torch takes longer than most tests. One that was
killed is started anew."""


@atexit.register
def _end_kept() -> None:
    for server in _kept:
        with server._channel, server._said, server._process as process:
            process.kill()


class StageProcess:
    """A stage server that can be killed, stopped and started again on its address.

    Args:
        model: Its model.
        layers: Its layers.
        start: Starts it with its arguments.
    """

    def __init__(
        self, model: Path, layers: LayerRange, start: Callable[[Sequence[str]], Awaitable[Process]]
    ) -> None:
        self.address = "127.0.0.1:0"
        self._start = start
        self._arguments = [
            *("--model", str(model), "--layers", str(layers)),
            *("--threads", "1", "--kv-memory", "1MiB", "--max-num-seqs", "16"),
            *("--dtype", "float32"),
            *("--json", "--exit-with-parent"),
        ]
        self._process: Process | None = None
        self._child: Child | None = None

    @property
    def process(self) -> Process:
        assert self._process is not None, "it was started"
        return self._process

    async def start(self) -> None:
        async with asyncio.timeout(START_DEADLINE_S):
            self._process = await self._start([*self._arguments, "--listen", self.address])
            self._child = Child("stage", self._process, relay_logs=False)
            self.address = str((await self._child.ready())["address"])

    def send(self, number: signal.Signals) -> None:
        os.kill(self.process.pid, number)

    async def kill(self) -> None:
        """Kills it with SIGKILL, as a crash or the out-of-memory killer would."""
        self.send(signal.SIGKILL)
        await self._ended()

    async def terminate(self) -> int:
        """Stops it with SIGTERM, which drains; returns its exit code."""
        self.send(signal.SIGTERM)
        await self._ended()
        return await self.process.wait()

    async def end(self) -> None:
        if self._process is not None and self._process.returncode is None:
            await self.kill()

    async def _ended(self) -> None:
        """Waits for its end and for that of all that it says."""
        assert self._child is not None, "it was started"
        await self._child.ended()


@asynccontextmanager
async def stage_processes(
    model: Path, ranges: Sequence[LayerRange], code: str | None = None
) -> AsyncIterator[list[StageProcess]]:
    """One for each range, all ready; killed at the end. Each runs `code`, if that is given."""
    forks = StageForks()
    if _kept:
        forks._server = _kept.pop()
        kept_ids.discard(forks._server._process.pid)
    start = forks.start if code is None else lambda arguments: spawn(["-c", code, *arguments])
    stages = [StageProcess(model, layers, start) for layers in ranges]
    with adopted_orphans():
        try:
            await asyncio.gather(*(stage.start() for stage in stages))
            yield stages
        finally:
            await asyncio.gather(*(stage.end() for stage in stages))
            if forks._server is not None:
                kept_ids.add(forks._server._process.pid)
                _kept.append(forks._server)
