"""The two ways in which a response goes out: whole, or as events while it is made."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from coordinator.core.events import Finished, TokensEvent
from coordinator.core.generation_engine import GenerationEngine
from coordinator.core.request_spec import RequestSpec
from coordinator.doors.http.answer import SpellToken, finish_reason
from coordinator.doors.http.choices import open_choices
from coordinator.doors.http.event_stream import EventSender, Patience
from coordinator.doors.http.field_names import FieldNames, renamed
from coordinator.doors.http.held_logprobs import HeldLogprobs, Hold
from coordinator.doors.http.pieces import PiecewiseResponse
from coordinator.doors.http.responses_answer import (
    event_pieces,
    failed,
    finished,
    response_pieces,
    state_event,
)
from coordinator.doors.http.responses_output import MadeItem, Output, Told
from coordinator.doors.http.responses_tools import FunctionOf
from coordinator.doors.http.schema.base import ResponseModel
from coordinator.doors.http.schema.responses_answer import ResponseObject
from stagecoach.contract.error_words import in_words_of
from stagecoach.contract.errors import StagecoachError

Keep = Callable[[ResponseObject, Sequence[MadeItem]], None]
"""Keeps a whole response, and its items."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Making:
    """A response that is to be made."""

    engine: GenerationEngine
    spec: RequestSpec
    frame: ResponseObject
    """As it begins."""
    functions: Mapping[str, FunctionOf]
    """What a call of each name is a call of."""
    spell: SpellToken
    held: HeldLogprobs
    """What all answers hold."""
    keep: Keep | None
    """None: it is not to be kept."""
    names: FieldNames
    """What the request calls the fields that an error may name."""

    def output(self) -> Output:
        """Takes its output."""
        wants_logprobs = self.spec.logprobs is not None
        return Output(self.frame.id, self.functions, self.spell if wants_logprobs else None)


class WholeResponse(Response):
    """Generates, and answers when all is there.

    Args:
        making: What is generated.
    """

    media_type = "application/json"

    def __init__(self, making: Making) -> None:
        super().__init__()
        self._making = making

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Generates and sends.

        Raises:
            StagecoachError: The request was not admitted or failed; nothing was sent.
        """
        making, output = self._making, self._making.output()
        with making.held.answer() as hold:
            response = await _generate(making, output, scope, receive, hold, _tell_nobody)
            pieces = response_pieces(response, output.items, making.spell)
            await PiecewiseResponse(pieces)(scope, receive, send)


class StreamedResponse(Response):
    """Generates, and sends every event as it comes.

    What fails before anything was sent has its own status; what fails later ends the response as
    failed.

    Args:
        making: What is generated.
        patience: How long the client is left without a byte.
    """

    media_type = "text/event-stream"

    def __init__(self, making: Making, patience: Patience) -> None:
        super().__init__()
        self._making = making
        self._patience = patience

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Generates and sends.

        Raises:
            StagecoachError: The request was not admitted, or failed before anything was sent.
        """
        events = EventSender(send, self._patience)
        sending = _Sending(self._making, events)

        async def fail(error: StagecoachError) -> None:
            names = self._making.names
            await sending.fail(in_words_of(error, lambda field: renamed(field, names)))
            await events.end()

        await events.deliver(
            partial(sending.run, scope, receive),
            fail,
            request_id=self._making.spec.request_id,
            is_done=False,
        )


class _Sending:
    """Sends one response, event by event."""

    def __init__(self, making: Making, events: EventSender) -> None:
        self._making = making
        self._events = events
        self._output = making.output()
        self._is_begun = False

    async def run(self, scope: Scope, receive: Receive) -> Sequence[ResponseModel]:
        """Sends all of it; nothing is left to send."""
        making, output = self._making, self._output
        with making.held.answer() as hold:
            response = await _generate(making, output, scope, receive, hold, self._tell)
            await self._tell(self._end(response))
        return ()

    async def fail(self, error: StagecoachError) -> None:
        """Ends it as failed."""
        await self._tell(self._failure(error))

    async def _tell(self, told: Iterable[Told]) -> None:
        if self._making.spec.logprobs is not None:
            await asyncio.sleep(0)  # a step brings them to all streams at once
        spell = self._making.spell
        pieces = (event_pieces(one, spell) for one in chain(self._beginning(), told))
        await self._events.send_pieces(chain.from_iterable(pieces))

    def _end(self, response: ResponseObject) -> Iterator[Told]:
        logprobs = [made.logprobs for made in self._output.items if made.logprobs]
        yield Told(state_event(response, self._output.next_number()), logprobs)

    def _failure(self, error: StagecoachError) -> Iterator[Told]:
        response = failed(self._making.frame, self._output.items, error)
        yield Told(state_event(response, self._output.next_number()))

    def _beginning(self) -> Iterator[Told]:
        """What comes before all else, once."""
        if not self._is_begun:
            self._is_begun = True
            frame, output = self._making.frame, self._output
            yield Told(state_event(frame, output.next_number(), is_created=True))
            yield Told(state_event(frame, output.next_number()))


async def _generate(
    making: Making,
    output: Output,
    scope: Scope,
    receive: Receive,
    hold: Hold,
    tell: Callable[[Iterable[Told]], Awaitable[None]],
) -> ResponseObject:
    """Makes a response.

    Args:
        making: What is generated.
        output: Takes the output.
        scope: ASGI's scope of the request.
        receive: ASGI's receiver of the request, whose body has been read.
        hold: Told what the answer holds from now on.
        tell: Is given what becomes of the output, and reads all of it.

    Raises:
        StagecoachError: The request was not admitted or failed.
    """
    async with open_choices(making.engine, ((making.spec,),), scope, receive) as opened:
        async for event in opened.choices[0]:
            match event:
                case TokensEvent():
                    hold(event)
                    await tell(output.take(event))
                case Finished():
                    finish_reason(event)  # raises where the client is gone
                    await tell(output.end(event))
                    response = finished(making.frame, output.items, event)
                    if making.keep is not None:
                        making.keep(response, output.items)
                    return response
    raise AssertionError("a stream ended without Finished")


async def _tell_nobody(told: Iterable[Told]) -> None:
    for _ in told:
        pass
