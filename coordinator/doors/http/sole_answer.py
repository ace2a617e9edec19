"""The two ways in which the answer to a request goes out that has one output: whole, or streamed.

`coordinator.doors.http.responses` has them for requests of several prompts or choices.
"""

from collections.abc import Sequence
from functools import partial
from typing import Protocol

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from coordinator.core.events import Finished, TokensEvent
from coordinator.core.generation_engine import GenerationEngine
from coordinator.core.request_spec import RequestSpec
from coordinator.doors.http.answer import ChoiceOutput, collect, finish_reason
from coordinator.doors.http.choices import open_choices
from coordinator.doors.http.error_forms import error_event
from coordinator.doors.http.event_stream import EventSender, Patience, StreamForm
from coordinator.doors.http.held_logprobs import HeldLogprobs
from coordinator.doors.http.schema.base import ResponseModel
from coordinator.doors.http.schema.written_objects import json_text
from stagecoach.contract.errors import StagecoachError


class SoleWriter(Protocol):
    """Writes the answer to one request."""

    @property
    def form(self) -> StreamForm:
        """How its events are written."""
        ...

    def opening(self, num_prompt_tokens: int) -> Sequence[ResponseModel]:
        """The events that begin a stream; called before all others."""
        ...

    def tokens(self, event: TokensEvent) -> Sequence[ResponseModel]:
        """The events that bring new tokens; none while there is nothing to show."""
        ...

    def ending(self, end: Finished) -> Sequence[ResponseModel]:
        """The events that end a stream."""
        ...

    def whole(self, output: ChoiceOutput) -> ResponseModel:
        """The answer that is not streamed."""
        ...


class WholeSoleAnswer(Response):
    """Generates, and answers when all is there.

    Args:
        engine: What generates.
        spec: What it is asked.
        writer: What writes the answer.
        held: What all answers hold.
    """

    media_type = "application/json"

    def __init__(
        self, engine: GenerationEngine, spec: RequestSpec, writer: SoleWriter, held: HeldLogprobs
    ) -> None:
        super().__init__()
        self._engine = engine
        self._spec = spec
        self._writer = writer
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Generates and sends.

        Raises:
            StagecoachError: The request was not admitted or failed; nothing was sent.
        """
        with self._held.answer() as hold:
            async with open_choices(self._engine, ((self._spec,),), scope, receive) as opened:
                output = await collect(opened.choices[0], hold)
        finish_reason(output.end)  # an output that was aborted is no answer
        body = json_text(self._writer.whole(output))
        await Response(body, media_type=self.media_type)(scope, receive, send)


class StreamedSoleAnswer(Response):
    """Generates, and sends every token as it comes.

    What fails before anything was sent has its own status; what fails later is one event with the
    error, and the last.

    Args:
        engine: What generates.
        spec: What it is asked.
        writer: What writes the answer.
        patience: How long the client is left without a byte.
    """

    def __init__(
        self, engine: GenerationEngine, spec: RequestSpec, writer: SoleWriter, patience: Patience
    ) -> None:
        super().__init__()
        self._engine = engine
        self._spec = spec
        self._writer = writer
        self._patience = patience

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Generates and sends.

        Raises:
            StagecoachError: The request was not admitted, or failed before anything was sent.
        """
        events = EventSender(send, self._patience, self._writer.form)

        async def fail(error: StagecoachError) -> None:
            await events.end(error_event(error, scope))

        run = partial(self._send_events, events, scope, receive)
        await events.deliver(run, fail, request_id=self._spec.request_id)

    async def _send_events(
        self, events: EventSender, scope: Scope, receive: Receive
    ) -> Sequence[ResponseModel]:
        """Sends all events but those at the end, which it returns."""
        async with open_choices(self._engine, ((self._spec,),), scope, receive) as opened:
            unsent = list(self._writer.opening(opened.num_prompt_tokens))
            async for event in opened.choices[0]:
                match event:
                    case TokensEvent():
                        new = self._writer.tokens(event)
                        if new:
                            await events.send(*unsent, *new)
                            unsent = []
                    case Finished():
                        finish_reason(event)  # an output that was aborted is no answer
                        return (*unsent, *self._writer.ending(event))
        raise AssertionError("a stream ended without Finished")
