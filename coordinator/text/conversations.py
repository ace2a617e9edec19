"""How the outputs of conversations are held to their form and read, for one model."""

import secrets
import string
from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple, Protocol

from coordinator.core.request_spec import ChatPrompt, RequestSpec
from coordinator.dialogue.dialect import Dialect
from coordinator.dialogue.formats.call_format import CONTROL, IdForm
from coordinator.dialogue.output_plan import (
    OutputPlan,
    WantedOutput,
    dialect_of,
    plan_output,
)
from coordinator.dialogue.reader import OutputReader
from coordinator.text.divided_text import DividedText
from coordinator.text.output_text import OutputText
from coordinator.text.tokenizer import Tokenizer
from stagecoach.contract.errors import UnsupportedModelError

_TAIL_TOKENS = 32
"""Tokens at the end of a prompt in which the mark that opens thinking is looked for."""

MAX_INLINE_CHARS = 8 * 1024
"""Most characters of tools of which a plan is made at once; it takes some milliseconds."""

MAX_PLANS = 32
"""Plans that are kept. An agent sends the same tools with each turn, and each of several choices
has those of the first."""

_ID_CHARS = string.ascii_letters + string.digits
_SMALL_ID_CHARS = string.ascii_lowercase + string.digits


class Planner(Protocol):
    """Makes plans elsewhere. Implemented by `TextWorkers`."""

    async def plan_output(self, wanted: WantedOutput) -> OutputPlan:
        """Makes a plan.

        Raises:
            StagecoachError: There is none, or it takes too long.
        """
        ...


class Conversation(NamedTuple):
    """What is known of an output before its first token."""

    wanted: WantedOutput
    plan: OutputPlan


class Conversations:
    """Says of each request what its output must match, and makes its text.

    Args:
        tokenizer: The model's; None when it serves token ids only.
        max_thinking_tokens: Tokens after which thinking is ended; None: never.
        workers: Makes plans of tools with long schemas; None: they are made at once.

    Raises:
        UnsupportedModelError: Thinking cannot be ended, as no one token of the model does.
    """

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        max_thinking_tokens: int | None = None,
        workers: Planner | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._workers = workers
        self._plans: OrderedDict[WantedOutput, OutputPlan] = OrderedDict()
        self._max_thinking_tokens = max_thinking_tokens
        thinking = None if tokenizer is None else tokenizer.dialect.thinking
        self._ends_thinking = False
        """Whether thinking can be ended, because a token of its own begins the mark that does."""
        if tokenizer is None or thinking is None:
            return
        end = thinking.end
        self._ends_thinking = end.startswith(CONTROL) or end in tokenizer.added_token_ids
        if max_thinking_tokens is not None and not self._ends_thinking:
            raise UnsupportedModelError(
                f"max_thinking_tokens is {max_thinking_tokens}, but the model ends its thinking by"
                f" {end!r}, which is several tokens: it cannot be made to"
            )

    async def plan(self, spec: RequestSpec, prompt_token_ids: Sequence[int]) -> Conversation | None:
        """How the output of a request is held to its form and read; None: it is not divided.

        Raises:
            InvalidArgumentError: The schema of a tool is none of an object, or too long.
            StagecoachError: That took too long, or too many wait.
        """
        tokenizer = self._tokenizer
        if tokenizer is None or not spec.divides_output:
            return None
        tail = _tail(tokenizer, prompt_token_ids)
        is_thinking, has_thought = _thinking_of(tokenizer.dialect, tail)
        wanted = WantedOutput(
            tools=spec.tools,
            content=spec.grammar,
            is_thinking=is_thinking,
            has_thought=has_thought,
            is_answering=_is_answering(tokenizer.dialect, tail, spec),
            max_thinking_tokens=self._thinking_limit(spec),
        )
        plan = self._plans.get(wanted)
        if plan is None:
            plan = await self._made(tokenizer, wanted)
            self._plans[wanted] = plan
            while len(self._plans) > MAX_PLANS:
                self._plans.popitem(last=False)
        self._plans.move_to_end(wanted)
        return Conversation(wanted, plan)

    def text(
        self, spec: RequestSpec, conversation: Conversation | None, *, min_tokens: int
    ) -> OutputText | DividedText:
        """Makes the text of a new request.

        Args:
            spec: The request.
            conversation: What `plan` returned.
            min_tokens: Tokens at the beginning in which stop strings do not count.
        """
        tokenizer = self._tokenizer
        if tokenizer is None or conversation is None:
            return OutputText(tokenizer, spec.stop, min_tokens=min_tokens)
        dialect = dialect_of(tokenizer.dialect, conversation.wanted)
        is_divided = dialect.thinking or spec.tools or dialect.calls.framing
        if not is_divided:
            return OutputText(tokenizer, spec.stop, min_tokens=min_tokens)
        reader = OutputReader(
            dialect,
            tools=conversation.plan.text_parameters,
            starts_in_reasoning=conversation.wanted.is_thinking,
            starts_in_content=conversation.wanted.is_answering,
            new_id=partial(new_call_id, dialect.calls.id_form),
        )
        return DividedText(tokenizer, reader, spec.stop, min_tokens=min_tokens)

    async def _made(self, tokenizer: Tokenizer, wanted: WantedOutput) -> OutputPlan:
        is_long = wanted.tools is not None and wanted.tools.num_chars > MAX_INLINE_CHARS
        if self._workers is not None and is_long:
            return await self._workers.plan_output(wanted)
        return plan_output(tokenizer.dialect, tokenizer.added_token_ids, wanted)

    def _thinking_limit(self, spec: RequestSpec) -> int | None:
        """The operator's limit, or that of the request where it is less and can be kept to."""
        limits = [self._max_thinking_tokens]
        if self._ends_thinking:
            limits.append(spec.max_thinking_tokens)
        return min((limit for limit in limits if limit is not None), default=None)


def _tail(tokenizer: Tokenizer, prompt_token_ids: Sequence[int]) -> str:
    """What the last tokens of a prompt spell, special ones included, without a blank at its end."""
    tail = b"".join(map(tokenizer.token_bytes, prompt_token_ids[-_TAIL_TOKENS:]))
    return tail.decode(errors="replace").rstrip()


def _thinking_of(dialect: Dialect, tail: str) -> tuple[bool, bool]:
    """Whether a prompt ends inside a section of thinking, and whether it ends one itself."""
    if dialect.thinking is None:
        return False, False
    begin, end = map(_spelled, dialect.thinking[:2])
    framing = dialect.calls.framing
    has_thought = tail.endswith(end)
    if framing is not None and not has_thought:  # the next section may be open too
        has_thought = tail.endswith(begin + end + _spelled(framing.joint))
    return not has_thought and tail.endswith(begin), has_thought


def _is_answering(dialect: Dialect, tail: str, spec: RequestSpec) -> bool:
    """Whether a prompt ends inside a section of content that the model marks."""
    framing = dialect.calls.framing
    if framing is None:
        return False
    goes_on = isinstance(spec.prompt, ChatPrompt) and spec.prompt.continue_final_message
    return goes_on or tail.endswith((_spelled(framing.begin), _spelled(framing.lead_begin)))


def _spelled(mark: str) -> str:
    return mark.replace(CONTROL, "").strip()


def new_call_id(form: IdForm) -> str:
    """An id that no other call has."""
    if form is IdForm.NINE:
        return "".join(secrets.choice(_ID_CHARS) for _ in range(9))
    if form is IdForm.TEN:
        return "".join(secrets.choice(_SMALL_ID_CHARS) for _ in range(10))
    return "call_" + "".join(secrets.choice(_ID_CHARS) for _ in range(24))
