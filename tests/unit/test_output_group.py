"""Processes that follow outputs may answer anything: their memory is what a client made of it."""

import asyncio
from typing import cast

import pytest

from coordinator.constraint.messages import OutputState, encode_states
from coordinator.constraint.output_group import OutputGroup
from coordinator.sandbox import ProcessDiedError, SandboxError, SandboxProcess

GOOD = encode_states([OutputState.open(b"\x03"), OutputState.complete()])


class AnsweringProcess:
    """Answers whatever it was made with."""

    process_id = 1

    def __init__(self, answer: bytes) -> None:
        self._answer = answer
        self.is_alive = True

    def submit(self, payload: bytes, *, timeout_s: float) -> asyncio.Future[bytes]:
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        future.set_result(self._answer)
        return future

    def close(self) -> None:
        self.is_alive = False


async def told_of(answer: bytes) -> tuple[list[OutputState | SandboxError], bool]:
    """What two outputs hear of an answer, and whether their process lives."""
    process = AnsweringProcess(answer)
    group = OutputGroup(cast(SandboxProcess, process))
    told: asyncio.Queue[OutputState | SandboxError] = asyncio.Queue()
    numbers = [group.join(told.put_nowait) for _ in range(2)]
    for number in numbers:
        group.append(number, (7,))
    async with asyncio.timeout(60):
        heard = [await told.get() for _ in numbers]
    return heard, process.is_alive


async def test_each_output_hears_its_state() -> None:
    assert await told_of(GOOD) == ([OutputState.open(b"\x03"), OutputState.complete()], True)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        GOOD[:-1],
        GOOD + GOOD,
        GOOD + b"\0",
        b"\xff" * 40,
        b"\x09\0\0\0" + b"\x77" * 9,
        bytes(26),
    ],
)
async def test_an_answer_that_cannot_be_read_ends_the_process_and_is_told(answer: bytes) -> None:
    told, is_alive = await told_of(answer)
    assert [type(one) for one in told] == [ProcessDiedError, ProcessDiedError]
    assert not is_alive
