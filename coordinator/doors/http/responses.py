"""The two ways in which an answer goes out: whole, or as server-sent events while it is made."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing, nullcontext
from dataclasses import replace
from functools import partial

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from coordinator.core.events import Finished, GenerationEvent, TokensEvent
from coordinator.core.generation_engine import GenerationEngine
from coordinator.core.prompt_logprobs import PromptLogprobs
from coordinator.doors.http.answer import (
    Answer,
    ChoiceOutput,
    Chunk,
    UsageInStream,
    collect,
    finish_reason,
    usage_of,
)
from coordinator.doors.http.choices import Choice, open_choices, run_all
from coordinator.doors.http.errors import error_body
from coordinator.doors.http.event_stream import EventSender, Patience
from coordinator.doors.http.field_names import field_names_of
from coordinator.doors.http.held_logprobs import HeldLogprobs, Hold
from coordinator.doors.http.pieces import PiecewiseResponse
from coordinator.doors.http.prompt_relay import PromptRelay
from coordinator.doors.http.request_specs import Specs
from coordinator.doors.http.schema.base import ResponseModel
from coordinator.doors.http.schema.sampling import Usage
from stagecoach.contract.errors import StagecoachError


class WholeAnswer(Response):
    """Generates, and answers when all is there.

    Args:
        engine: What generates.
        specs: The choices of each prompt.
        answer: What writes it.
        held: What all answers hold.
    """

    media_type = "application/json"

    def __init__(
        self, engine: GenerationEngine, specs: Specs, answer: Answer, held: HeldLogprobs
    ) -> None:
        super().__init__()
        self._held = held
        self._engine = engine
        self._specs = specs
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Generates and sends.

        Raises:
            StagecoachError: A request was not admitted or failed; nothing was sent.
        """
        with self._held.answer() as hold:
            await self._generate(hold, scope, receive, send)

    async def _generate(self, hold: Hold, scope: Scope, receive: Receive, send: Send) -> None:
        outputs: dict[int, ChoiceOutput] = {}

        async def read(index: int, choice: Choice) -> None:
            outputs[index] = await collect(choice, hold)

        async with open_choices(self._engine, self._specs, scope, receive) as opened:
            await self._answer.read_prompts(opened.prompts, opened.num_choices)
            await run_all(opened.choices, read)
        ordered = [
            # The first choice of a prompt was told of the prompt.
            replace(outputs[i], prompt_logprobs=outputs[i - i % opened.num_choices].prompt_logprobs)
            for i in range(len(outputs))
        ]
        usage = usage_of(
            opened.num_prompt_tokens, [output.end for output in ordered], len(self._specs)
        )
        for output in ordered:
            finish_reason(output.end)  # before anything is sent
        await PiecewiseResponse(self._answer.pieces(ordered, usage))(scope, receive, send)


class StreamedAnswer(Response):
    """Generates, and sends every token as it comes, as server-sent events.

    What fails before anything was sent has its own status; what fails later is one event with the
    error, and there is no `[DONE]`.

    Args:
        engine: What generates.
        specs: The choices of each prompt.
        answer: What writes it.
        usage: What is told of the usage.
        request_id: Id of the request, for the log.
        patience: How long the client is left without a byte.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        engine: GenerationEngine,
        specs: Specs,
        answer: Answer,
        *,
        usage: UsageInStream,
        request_id: str,
        patience: Patience,
    ) -> None:
        super().__init__()
        self._engine = engine
        self._specs = specs
        self._answer = answer
        self._usage = usage
        self._request_id = request_id
        self._patience = patience

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Generates and sends.

        Raises:
            StagecoachError: A request was not admitted, or failed before anything was sent.
        """
        events = EventSender(send, self._patience)

        async def fail(error: StagecoachError) -> None:
            await events.end(error_body(error, field_names_of(scope)))

        run = partial(self._send_choices, events, scope, receive)
        await events.deliver(run, fail, request_id=self._request_id)

    async def _send_choices(
        self, events: EventSender, scope: Scope, receive: Receive
    ) -> Sequence[ResponseModel]:
        """Sends all choices; returns what is left to send."""
        ends: dict[int, Finished] = {}
        async with open_choices(self._engine, self._specs, scope, receive) as opened:
            await self._answer.read_prompts(opened.prompts, opened.num_choices)
            so_far = _UsageSoFar(self._usage, opened.num_prompt_tokens)
            relays = [PromptRelay(opened.num_choices) for _ in opened.prompts]

            async def write(index: int, choice: Choice) -> None:
                number, place = divmod(index, opened.num_choices)
                async with aclosing(relays[number].reader(choice, place)) as reader:
                    ends[index] = await self._send_choice(events, index, reader, so_far)

            await run_all(opened.choices, write)
        if self._usage is UsageInStream.NONE:
            return ()
        ordered = [ends[index] for index in range(len(ends))]
        return (self._answer.usage(usage_of(opened.num_prompt_tokens, ordered, len(self._specs))),)

    async def _send_choice(
        self,
        events: EventSender,
        index: int,
        choice: AsyncIterator[GenerationEvent],
        so_far: "_UsageSoFar",
    ) -> Finished:
        opening = self._answer.opening(index)
        unsent = [] if opening is None else [opening]
        prompt_is_sent = False
        async for event in choice:
            if not prompt_is_sent:
                of_prompt = event if isinstance(event, PromptLogprobs) else None
                await _send_prompt(events, self._answer.of_prompt(index, of_prompt), so_far)
                prompt_is_sent = of_prompt is None
            match event:
                case TokensEvent():
                    # Log-probabilities take a millisecond to write, and a step brings them to all
                    # choices at once: whoever waits here lets the loop go round in between.
                    async with events.turn if event.logprobs else nullcontext():
                        if event.logprobs:
                            await asyncio.sleep(0)
                        chunk = self._answer.tokens(index, event)
                        so_far.num_completion_tokens += len(event.token_ids)
                        if chunk is not None:
                            await events.send(*map(so_far.on, (*unsent, chunk)))
                            unsent.clear()
                case Finished():
                    ending = self._answer.ending(index, event)
                    await events.send(*map(so_far.on, (*unsent, ending)))
                    return event
        raise AssertionError("a stream ended without Finished")


async def _send_prompt(events: EventSender, chunks: Iterator[Chunk], so_far: "_UsageSoFar") -> None:
    """Sends a part of a prompt, each chunk of which takes a millisecond to write."""
    while True:
        async with events.turn:
            await asyncio.sleep(0)
            chunk = next(chunks, None)
            if chunk is None:
                return
            await events.send(so_far.on(chunk))


class _UsageSoFar:
    """Writes into each chunk what its request has used, if that is wanted."""

    def __init__(self, wanted: UsageInStream, num_prompt_tokens: int) -> None:
        self._is_wanted = wanted is UsageInStream.IN_EVERY_CHUNK
        self._num_prompt_tokens = num_prompt_tokens
        self.num_completion_tokens = 0

    def on(self, chunk: Chunk) -> Chunk:
        """The chunk itself."""
        if self._is_wanted:
            chunk.usage = Usage(
                prompt_tokens=self._num_prompt_tokens,
                completion_tokens=self.num_completion_tokens,
                total_tokens=self._num_prompt_tokens + self.num_completion_tokens,
            )
        return chunk
