"""The two ways in which an answer goes out: whole, or as server-sent events while it is made."""

import logging
from collections.abc import Sequence
from http import HTTPStatus

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from coordinator.core.events import Finished, TokensEvent
from coordinator.http.answer import Answer, ChoiceOutput, collect, usage_of
from coordinator.http.choices import Choice, open_choices, run_all
from coordinator.http.errors import error_body
from coordinator.http.request_specs import Specs
from coordinator.http.schema.base import ResponseModel
from coordinator.service.generation_engine import GenerationEngine
from protos.errors import InternalError, StagecoachError

_EVENT_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # or nginx would hold events back
]

_log = logging.getLogger(__name__)


class WholeAnswer(Response):
    """Generates, and answers when all is there.

    Args:
        engine: What generates.
        specs: The choices of each prompt.
        answer: What writes it.
    """

    media_type = "application/json"

    def __init__(self, engine: GenerationEngine, specs: Specs, answer: Answer) -> None:
        """Admits nothing yet."""
        super().__init__()
        self._engine = engine
        self._specs = specs
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Generates and sends.

        Raises:
            StagecoachError: A request was not admitted or failed; nothing was sent.
        """
        outputs: dict[int, ChoiceOutput] = {}

        async def read(index: int, choice: Choice) -> None:
            outputs[index] = await collect(choice)

        async with open_choices(self._engine, self._specs, receive) as opened:
            await run_all(opened.choices, read)
        ordered = [outputs[index] for index in range(len(outputs))]
        usage = usage_of(
            opened.num_prompt_tokens, [output.end for output in ordered], len(self._specs)
        )
        body = self._answer.whole(ordered, usage).model_dump_json(exclude_unset=True)
        await Response(body, media_type=self.media_type)(scope, receive, send)


class StreamedAnswer(Response):
    """Generates, and sends every token as it comes, as server-sent events.

    Nothing is sent before the first token, so that what fails until then has its own status; what
    fails later is one event with the error, and there is no `[DONE]`.

    Args:
        engine: What generates.
        specs: The choices of each prompt.
        answer: What writes it.
        with_usage: End with the usage.
        request_id: For the log.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        engine: GenerationEngine,
        specs: Specs,
        answer: Answer,
        *,
        with_usage: bool,
        request_id: str,
    ) -> None:
        """Admits nothing yet."""
        super().__init__()
        self._engine = engine
        self._specs = specs
        self._answer = answer
        self._with_usage = with_usage
        self._request_id = request_id

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        """Generates and sends.

        Raises:
            StagecoachError: A request was not admitted, or failed before anything was sent.
        """
        events = _EventSender(send)
        try:
            await self._send_all(events, receive)
        except StagecoachError as error:
            if not events.is_started:
                raise
            await events.end(error_body(error))
        except Exception:  # a bug; a stream that has begun ends with an event that says so
            if not events.is_started:
                raise
            _log.exception("internal error in request %s", self._request_id)
            internal = InternalError(
                f"internal error; the coordinator's log has it as {self._request_id}"
            )
            await events.end(error_body(internal))

    async def _send_all(self, events: "_EventSender", receive: Receive) -> None:
        ends: dict[int, Finished] = {}

        async def write(index: int, choice: Choice) -> None:
            ends[index] = await self._send_choice(events, index, choice)

        async with open_choices(self._engine, self._specs, receive) as opened:
            await run_all(opened.choices, write)
        last: Sequence[ResponseModel] = ()
        if self._with_usage:
            ordered = [ends[index] for index in range(len(ends))]
            last = [
                self._answer.usage(usage_of(opened.num_prompt_tokens, ordered, len(self._specs)))
            ]
        await events.end(*last, is_done=True)

    async def _send_choice(self, events: "_EventSender", index: int, choice: Choice) -> Finished:
        opening = self._answer.opening(index)
        unsent = [] if opening is None else [opening]
        async for event in choice:
            match event:
                case TokensEvent():
                    chunk = self._answer.tokens(index, event)
                    if chunk is not None:
                        await events.send(*unsent, chunk)
                        unsent.clear()
                case Finished():
                    await events.send(*unsent, self._answer.ending(index, event))
                    return event
        raise AssertionError("a stream ended without Finished")


class _EventSender:
    """Sends server-sent events; the first one starts the response."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.is_started = False

    async def send(self, *chunks: ResponseModel) -> None:
        """Sends an event for each chunk, all at once."""
        await self._write(b"".join(map(_event, chunks)), more=True)

    async def end(self, *chunks: ResponseModel, is_done: bool = False) -> None:
        """Sends the last events and ends the response.

        Args:
            *chunks: One event each.
            is_done: Tell the client that this is all there was to come.
        """
        done = b"data: [DONE]\n\n" if is_done else b""
        await self._write(b"".join(map(_event, chunks)) + done, more=False)

    async def _write(self, body: bytes, *, more: bool) -> None:
        if not self.is_started:
            self.is_started = True
            await self._send(
                {
                    "type": "http.response.start",
                    "status": HTTPStatus.OK,
                    "headers": _EVENT_STREAM_HEADERS,
                }
            )
        await self._send({"type": "http.response.body", "body": body, "more_body": more})


def _event(chunk: ResponseModel) -> bytes:
    return b"data: %b\n\n" % chunk.model_dump_json(exclude_unset=True).encode()
