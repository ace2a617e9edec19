"""The engine's requests behind one request of a client: one for every choice of every prompt.

They are admitted together or not at all, and end together when the client goes away or one fails.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import NamedTuple, Self

from starlette.types import Receive, Scope

from coordinator.core.events import Accepted, GenerationEvent
from coordinator.core.generation_engine import EventStream, GenerationEngine
from coordinator.core.request_spec import EncodedPrompt, Prompt, RequestSpec
from coordinator.doors.http.ignored_fields import note_relaxed
from coordinator.doors.prompt_items import of_item
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


class TakenPrompt(NamedTuple):
    """A prompt whose choices were admitted."""

    prompt: Prompt
    """As it came."""
    token_ids: Sequence[int]
    """What the engine made of it."""


class OpenChoices(NamedTuple):
    """Choices that were admitted; those of the first prompt come first."""

    choices: Sequence[Choice]
    prompts: Sequence[TakenPrompt]

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of every prompt, counted once each."""
        return sum(len(one.token_ids) for one in self.prompts)

    @property
    def num_choices(self) -> int:
        """Choices of each prompt."""
        return len(self.choices) // len(self.prompts)


@asynccontextmanager
async def open_choices(
    engine: GenerationEngine,
    specs: Sequence[Sequence[RequestSpec]],
    scope: Scope,
    receive: Receive,
) -> AsyncIterator[OpenChoices]:
    """Admits the requests; whatever ends the block ends them, and so does the client's leaving.

    Args:
        engine: What generates.
        specs: The choices of each prompt, in order.
        scope: ASGI's scope of the request; what its answer has to name is noted there.
        receive: ASGI's receiver of the request, whose body has been read.

    Raises:
        StagecoachError: One was not admitted.
    """
    opened: list[list[Choice]] = []
    admission = asyncio.create_task(_admit(engine, specs, opened))
    watch = asyncio.create_task(_end_when_gone(receive, admission, opened))
    try:
        await asyncio.wait({admission})
        if admission.cancelled():
            raise RequestAbortedError("the client is gone")
        admitted = admission.result()
        note_relaxed(scope, admitted[0].relaxed_fields)
        prompts = [
            TakenPrompt(group[0].prompt, accepted.prompt_token_ids)
            for group, accepted in zip(specs, admitted, strict=True)
        ]
        yield OpenChoices([choice for group in opened for choice in group], prompts)
    finally:
        watch.cancel()
        _end(admission, opened)
        await asyncio.gather(admission, watch, return_exceptions=True)


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


async def _admit(
    engine: GenerationEngine, specs: Sequence[Sequence[RequestSpec]], opened: list[list[Choice]]
) -> list[Accepted]:
    """Admits the choices into `opened`, one by one; returns what is known of each prompt."""
    admitted: list[Accepted] = []
    for index, prompt_specs in enumerate(specs):
        group: list[Choice] = []
        opened.append(group)
        try:
            accepted = await _open(engine, prompt_specs[0], group)
        except StagecoachError as error:
            if len(specs) == 1:
                raise
            raise of_item(error, index) from error
        admitted.append(accepted)
    for group, prompt_specs, accepted in zip(opened, specs, admitted, strict=True):
        prompt = EncodedPrompt(token_ids=accepted.prompt_token_ids)  # it is not encoded again
        for spec in prompt_specs[1:]:
            await _open(engine, replace(spec, prompt=prompt), group)
    return admitted


async def _open(engine: GenerationEngine, spec: RequestSpec, group: list[Choice]) -> Accepted:
    """Admits one choice into its group."""
    choice = Choice(await engine.submit(spec))
    group.append(choice)
    accepted = await choice.accepted()
    await asyncio.sleep(0)  # there may be many, each of which took some time
    return accepted


async def _end_when_gone(
    receive: Receive, admission: asyncio.Task[list[Accepted]], opened: list[list[Choice]]
) -> None:
    """Waits until the client is gone; what it asked for ends with the engine's next step."""
    while (await receive())["type"] != "http.disconnect":
        pass
    _end(admission, opened)


def _end(admission: asyncio.Task[list[Accepted]], opened: list[list[Choice]]) -> None:
    """Admits no more choices, and cancels those that are there."""
    admission.cancel()
    for group in opened:
        for choice in group:
            choice.cancel()
