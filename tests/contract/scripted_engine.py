"""An engine for the doors that writes given texts, divided as what a model writes.

The demo model is too small to decide to call a tool; texts that stand in for a model are written by
hand in the format of Hermes and Qwen.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from itertools import count
from typing import NamedTuple

from coordinator.core.events import Accepted, GenerationEvent, TokensEvent
from coordinator.core.output_parts import ContentPart, OutputPart
from coordinator.core.request import FinishReason
from coordinator.core.request_spec import RequestSpec
from coordinator.dialogue.dialect import Dialect
from coordinator.dialogue.reader import OutputReader
from tests.contract.echo_engine import EchoEngine, EchoStream

THINKING_CALLER = Dialect.of("<tool_call> {tools} </tool_call> <think></think>").bound(())


class Script(NamedTuple):
    """What a model writes."""

    text: str
    is_cut: bool = False
    """Whether it would go on."""


class ScriptedStream(EchoStream):
    """The events of one request, some characters each."""

    def __init__(self, engine: "ScriptedEngine", spec: RequestSpec, prompt: list[int]) -> None:
        self._script = engine.next_script()
        self._num_chars = engine.num_chars
        self._new_call_id = engine.call_ids()
        super().__init__(engine, spec, prompt)

    async def _generate(self, prompt: list[int]) -> AsyncIterator[GenerationEvent]:
        use = self._spec.tools
        reader = OutputReader(
            THINKING_CALLER,
            tools=None if use is None else {one.name: () for one in use.callable_tools},
            starts_in_reasoning=False,
            new_id=self._new_call_id,
        )
        yield Accepted(request_id=self._spec.request_id or "", prompt_token_ids=tuple(prompt))
        text, num_tokens = self._script.text, 0
        for start in range(0, len(text), self._num_chars):
            await self._pause()
            parts = reader.push(text[start : start + self._num_chars])
            num_tokens += 1
            yield TokensEvent(token_ids=(1,), text=_content(parts), parts=tuple(parts))
        self._engine.running.discard(self)
        held = reader.flush()
        reason = FinishReason.LENGTH if self._script.is_cut else FinishReason.STOP
        yield self._finished(
            reason,
            prompt,
            num_tokens,
            _content(held),
            parts=tuple(held),
            num_calls=reader.num_calls,
        )


def _content(parts: Sequence[OutputPart]) -> str:
    return "".join(part.text for part in parts if isinstance(part, ContentPart))


class ScriptedEngine(EchoEngine):
    """A `GenerationEngine`; each request gets the next of the texts, and the last one again.

    Args:
        *scripts: What the model writes.
        num_chars: That a token spells.
        names: Of its model.
    """

    def __init__(
        self, *scripts: Script, num_chars: int = 3, names: Sequence[str] = ("scripted",)
    ) -> None:
        super().__init__(names=names, max_model_len=1 << 20)
        self._scripts = list(scripts)
        self.num_chars = num_chars

    def next_script(self) -> Script:
        return self._scripts.pop(0) if len(self._scripts) > 1 else self._scripts[0]

    def call_ids(self) -> Callable[[], str]:
        """Makes the ids of the calls of one request."""
        ids = count(1)
        return lambda: f"call_{next(ids)}"

    def open_stream(self, spec: RequestSpec, prompt: list[int]) -> EchoStream:
        return ScriptedStream(self, spec, prompt)
