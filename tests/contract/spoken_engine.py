"""An engine that says what a test tells it to, divided as a model's output is."""

import asyncio
from collections.abc import AsyncIterator, Sequence

from coordinator.core.events import Accepted, Finished, GenerationEvent, TokensEvent
from coordinator.core.output_parts import CallEnds, ContentPart, OutputPart, ReasoningPart
from coordinator.core.request import FinishReason
from coordinator.core.request_spec import RequestSpec
from tests.contract.echo_engine import TIMINGS, EchoEngine

Script = Sequence[OutputPart]
"""What is said for one request, a part with each token."""


class SpokenStream:
    """The events of one request."""

    def __init__(self, spec: RequestSpec, script: Script, delay_s: float) -> None:
        self._events = self._say(spec, script, delay_s)

    def __aiter__(self) -> "SpokenStream":
        return self

    async def __anext__(self) -> GenerationEvent:
        return await anext(self._events)

    def cancel(self) -> None:
        """See `EventStream.cancel`: nobody waits for what is not read."""

    async def _say(
        self, spec: RequestSpec, script: Script, delay_s: float
    ) -> AsyncIterator[GenerationEvent]:
        yield Accepted(request_id=spec.request_id or "scripted-1", prompt_token_ids=(1,))
        for token_id, part in enumerate(script):
            await asyncio.sleep(delay_s)
            text = part.text if isinstance(part, ContentPart) else ""
            yield TokensEvent(token_ids=(token_id,), text=text, parts=(part,))
        yield Finished(
            finish_reason=FinishReason.STOP,
            text="",
            num_prompt_tokens=1,
            num_completion_tokens=len(script),
            num_reasoning_tokens=sum(isinstance(part, ReasoningPart) for part in script),
            num_cached_tokens=0,
            timings=TIMINGS,
            num_calls=sum(isinstance(part, CallEnds) for part in script),
        )


class SpokenEngine(EchoEngine):
    """An `EchoEngine` that says something of its own.

    Args:
        *scripts: What is said for one request after the other.
        names: Of its model.
        delay_s: Before each part.
    """

    def __init__(
        self, *scripts: Script, names: Sequence[str] = ("echo",), delay_s: float = 0.0
    ) -> None:
        super().__init__(names=names, delay_s=delay_s)
        self._scripts = iter(scripts)

    async def submit(self, spec: RequestSpec) -> SpokenStream:  # type: ignore[override]
        """Says what comes next."""
        self.specs.append(spec)
        return SpokenStream(spec, next(self._scripts), self.delay_s)
