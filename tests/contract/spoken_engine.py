"""An engine that says what a test tells it to, divided as a model's output is."""

from collections.abc import AsyncIterator, Sequence

from coordinator.core.events import Accepted, Finished, GenerationEvent, TokensEvent
from coordinator.core.output_parts import CallEnds, ContentPart, OutputPart
from coordinator.core.request import FinishReason
from coordinator.core.request_spec import RequestSpec
from tests.contract.echo_engine import TIMINGS, EchoEngine

Script = Sequence[OutputPart]
"""What is said for one request, a part with each token."""


class SpokenStream:
    """The events of one request."""

    def __init__(self, spec: RequestSpec, script: Script) -> None:
        self._events = self._say(spec, script)

    def __aiter__(self) -> "SpokenStream":
        return self

    async def __anext__(self) -> GenerationEvent:
        return await anext(self._events)

    def cancel(self) -> None:
        """See `EventStream.cancel`: what is said takes no time."""

    async def _say(self, spec: RequestSpec, script: Script) -> AsyncIterator[GenerationEvent]:
        yield Accepted(request_id=spec.request_id or "scripted-1", prompt_token_ids=(1,))
        for token_id, part in enumerate(script):
            text = part.text if isinstance(part, ContentPart) else ""
            yield TokensEvent(token_ids=(token_id,), text=text, parts=(part,))
        yield Finished(
            finish_reason=FinishReason.STOP,
            text="",
            num_prompt_tokens=1,
            num_completion_tokens=len(script),
            num_cached_tokens=0,
            timings=TIMINGS,
            num_calls=sum(isinstance(part, CallEnds) for part in script),
        )


class SpokenEngine(EchoEngine):
    """An `EchoEngine` that says something of its own.

    Args:
        *scripts: What is said for one request after the other.
        names: Of its model.
    """

    def __init__(self, *scripts: Script, names: Sequence[str] = ("echo",)) -> None:
        super().__init__(names=names)
        self._scripts = iter(scripts)

    async def submit(self, spec: RequestSpec) -> SpokenStream:  # type: ignore[override]
        """Says what comes next."""
        self.specs.append(spec)
        return SpokenStream(spec, next(self._scripts))
