"""Whose turn it is when grammars take long; their processes are only told to stop and go on."""

import asyncio
from typing import cast

import pytest

from coordinator.constraint.compile_turns import MAX_LONG, MAX_PAUSED, CompileTurns
from coordinator.sandbox import SandboxProcess
from stagecoach.contract.errors import QueueFullError

NUM_GRAMMARS = MAX_LONG + MAX_PAUSED + 3


class RecordingProcess:
    """Knows whether it may work."""

    def __init__(self) -> None:
        self.works = True
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def yield_cpu(self) -> None:
        """It is one of those that take long."""

    def pause(self) -> None:
        self.works = False

    def resume(self) -> None:
        self.works = True


def start(turns: CompileTurns, process: RecordingProcess) -> "asyncio.Task[None]":
    return asyncio.create_task(turns.go_on(cast(SandboxProcess, process), process.answer))


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_of_those_that_come_together_so_many_work_and_so_many_wait() -> None:
    turns = CompileTurns()
    processes = [RecordingProcess() for _ in range(NUM_GRAMMARS)]
    going = [start(turns, process) for process in processes]
    await settle()
    refusals = [task.exception() for task in going if task.done()]
    assert [type(error) for error in refusals] == [QueueFullError] * 3
    taken = [one for one, task in zip(processes, going, strict=True) if not task.done()]
    assert [process.works for process in taken] == [True] * MAX_LONG + [False] * MAX_PAUSED
    for process in taken:
        assert process.works
        process.answer.set_result(b"")
        await settle()
    assert all(task.done() for task in going)


@pytest.mark.parametrize("ends_first", [False, True])
async def test_one_that_is_given_up_while_its_turn_comes_keeps_no_turn(ends_first: bool) -> None:
    turns = CompileTurns()
    working = [RecordingProcess() for _ in range(MAX_LONG)]
    going = [start(turns, process) for process in working]
    waiting = RecordingProcess()
    waits = start(turns, waiting)
    await settle()
    if ends_first:
        working[0].answer.set_result(b"")
        await going[0]
        await asyncio.sleep(0)  # the turn has come, and nobody has heard of it
    waits.cancel()
    await asyncio.wait({waits})
    if not ends_first:
        working[0].answer.set_result(b"")
        await going[0]
    after = RecordingProcess()
    last = start(turns, after)
    await settle()
    assert after.works
    for process in (working[1], after):
        process.answer.set_result(b"")
    await asyncio.gather(going[1], last)
