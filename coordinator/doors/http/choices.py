"""The engine's requests behind one request of a client: one for every choice of every prompt.

They are admitted together or not at all, and end together when the client goes away or one fails.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import NamedTuple, Self

from starlette.types import Receive

from coordinator.core.events import Accepted, GenerationEvent
from coordinator.core.generation_engine import EventStream, GenerationEngine
from coordinator.core.request_spec import EncodedPrompt, RequestSpec
from coordinator.doors.http.errors import of_item
from stagecoach.contract.errors import RequestAbortedError, StagecoachError


class Choice:
    """One choice: the events of its request. For one reader.

    Args:
        stream: What the engine returned.
    """

    def __init__(self, stream: EventStream) -> None:
        self._stream = stream
        self._events = aiter(stream)

    async def accepted(self) -> Accepted:
        """The first event; iteration does not repeat it."""
        event = await anext(self._events)
        assert isinstance(event, Accepted), "a stream begins with another event than Accepted"
        return event

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> GenerationEvent:
        """The next event after `accepted`.

        Raises:
            StagecoachError: The request failed.
        """
        return await anext(self._events)

    def cancel(self) -> None:
        """Ends the request; does nothing when it has ended."""
        self._stream.cancel()


class OpenChoices(NamedTuple):
    """Choices that were admitted; those of the first prompt come first."""

    choices: Sequence[Choice]
    num_prompt_tokens: int
    """Of every prompt, once each."""


@asynccontextmanager
async def open_choices(
    engine: GenerationEngine, specs: Sequence[Sequence[RequestSpec]], receive: Receive
) -> AsyncIterator[OpenChoices]:
    """Admits the requests; whatever ends the block ends them, and so does the client's leaving.

    Args:
        engine: What generates.
        specs: The choices of each prompt, in order.
        receive: Of the request, whose body has been read.

    Raises:
        StagecoachError: One was not admitted.
    """
    opened: list[list[Choice]] = []
    watch = asyncio.create_task(_cancel_when_gone(receive, opened))
    try:
        prompts: list[EncodedPrompt] = []
        for index, prompt_specs in enumerate(specs):
            try:
                choice = Choice(engine.submit(prompt_specs[0]))
                opened.append([choice])
                accepted = await choice.accepted()
            except StagecoachError as error:
                if len(specs) == 1:
                    raise
                raise of_item(error, index) from error
            prompts.append(EncodedPrompt(token_ids=accepted.prompt_token_ids))
            await asyncio.sleep(0)  # many prompts, each of which took some time
            _check_there(watch)
        num_prompt_tokens = sum(len(prompt.token_ids) for prompt in prompts)
        if len(specs[0]) > 1:
            await _open_siblings(engine, specs, prompts, opened, watch)
        yield OpenChoices([choice for group in opened for choice in group], num_prompt_tokens)
    finally:
        watch.cancel()
        for group in opened:
            for choice in group:
                choice.cancel()
        await asyncio.wait({watch})


async def run_all(
    choices: Sequence[Choice], consume: Callable[[int, Choice], Awaitable[None]]
) -> None:
    """Reads all choices at once.

    Args:
        choices: What is read.
        consume: Reads one to its end; gets its index.

    Raises:
        StagecoachError: What the first that failed raised; the others are no longer read.
    """
    if len(choices) == 1:
        await consume(0, choices[0])
        return
    readers = [
        asyncio.ensure_future(consume(index, choice)) for index, choice in enumerate(choices)
    ]
    try:
        await asyncio.gather(*readers)
    finally:
        for reader in readers:
            reader.cancel()
        await asyncio.wait(readers)


async def _open_siblings(
    engine: GenerationEngine,
    specs: Sequence[Sequence[RequestSpec]],
    prompts: Sequence[EncodedPrompt],
    opened: list[list[Choice]],
    watch: asyncio.Task[None],
) -> None:
    """Admits the other choices of each prompt, which is not encoded again."""
    for group, prompt_specs, prompt in zip(opened, specs, prompts, strict=True):
        for spec in prompt_specs[1:]:
            choice = Choice(engine.submit(replace(spec, prompt=prompt)))
            group.append(choice)
            await choice.accepted()
            await asyncio.sleep(0)
            _check_there(watch)


def _check_there(watch: asyncio.Task[None]) -> None:
    """After any wait, and before more is admitted: what `watch` has not seen it cannot cancel."""
    if watch.done():
        raise RequestAbortedError("the client is gone")


async def _cancel_when_gone(receive: Receive, opened: list[list[Choice]]) -> None:
    """Waits until the client is gone; what it asked for ends with the engine's next step."""
    while (await receive())["type"] != "http.disconnect":
        pass
    for group in opened:
        for choice in group:
            choice.cancel()
