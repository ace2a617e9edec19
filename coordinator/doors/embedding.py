"""Embeds the prompts of one call of a client, through whichever door it came.

A call may have more prompts than may wait or run at once: some are with the engine, and each that
ends makes room for the next one.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from coordinator.core.events import Finished
from coordinator.core.generation_engine import EventStream, GenerationEngine
from coordinator.core.request_spec import RequestSpec
from stagecoach.contract.errors import (
    InvalidArgumentError,
    QueueFullError,
    RequestAbortedError,
    StagecoachError,
)

MAX_PROMPTS = 2048
"""Most prompts of one call, which is OpenAI's bound."""

MAX_AT_ONCE = 128
"""Prompts of one call that are with the engine at once: as many as completions of one call."""

_ELEMENT_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedded:
    """The embedding of one of the prompts."""

    index: int
    """Place of the prompt in the call."""
    values: Sequence[float]
    """A buffer of float32."""
    num_prompt_tokens: int
    num_cached_tokens: int
    """Tokens of the prompt that the prefix cache held."""

    @property
    def num_bytes(self) -> int:
        """Memory that it takes."""
        return len(self.values) * _ELEMENT_BYTES


async def embed_all(
    engine: GenerationEngine,
    specs: Sequence[RequestSpec],
    take: Callable[[Embedded], Awaitable[None]],
    *,
    of_item: Callable[[StagecoachError, int], StagecoachError],
) -> None:
    """Embeds prompts; whatever ends the call of this ends all that were begun.

    Where the engine, or the caller's share of it, is full, the next prompt waits for one of these
    to end. It is refused only where none of these is there.

    Args:
        engine: What embeds.
        specs: One for each prompt; all have `embedding` set, and `max_tokens` 0.
        take: Gets each embedding, in the order of their ends; while it waits, so do the others.
        of_item: Says of an error which of the prompts it is of.

    Raises:
        StagecoachError: One was not taken, or failed; or `take` refuses.
    """
    todo = deque(enumerate(specs))
    running: dict[asyncio.Task[Embedded], EventStream] = {}
    try:
        while todo or running:
            while todo and len(running) < MAX_AT_ONCE:
                index, spec = todo[0]
                try:
                    stream = await engine.submit(spec)
                except QueueFullError:
                    if not running:
                        raise
                    break
                except StagecoachError as error:
                    raise of_item(error, index) from error
                todo.popleft()
                running[asyncio.create_task(_read(index, stream))] = stream
                await asyncio.sleep(0)  # there may be many, each of which took some time
            done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                await take(task.result())
                running.pop(task).cancel()  # whose end was read; its caller's share is free
    finally:
        for task, stream in running.items():
            task.cancel()
            stream.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def check_num_prompts(num_prompts: int, *, prompts: str) -> None:
    """Checks how many prompts a call has.

    Args:
        num_prompts: How many.
        prompts: What the call names them.

    Raises:
        InvalidArgumentError: There is none, or there are too many.
    """
    if not 1 <= num_prompts <= MAX_PROMPTS:
        raise InvalidArgumentError(
            f"{prompts} has {num_prompts} items, must have 1 to {MAX_PROMPTS}", field=prompts
        )


async def _read(index: int, stream: EventStream) -> Embedded:
    """Reads a request to its end."""
    async for event in stream:
        if isinstance(event, Finished):
            if event.embedding is None:
                raise RequestAbortedError("the request was aborted")
            return Embedded(
                index=index,
                values=event.embedding,
                num_prompt_tokens=event.num_prompt_tokens,
                num_cached_tokens=event.num_cached_tokens,
            )
    raise AssertionError("a stream ended without Finished")
