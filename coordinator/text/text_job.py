"""Tokenizing, rendering and detokenizing in a sandboxed process; see `coordinator.sandbox`.

A chat template is a program of whoever made the model, and may loop for ever; a tokenizer takes a
second for what a client can send in a moment. Both run here, and no longer than they may.
"""

import json
from array import array
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from coordinator.core.grammar import Grammar, GrammarKind
from coordinator.core.request_spec import ChatMessage, ChatPrompt, TextPrompt
from coordinator.core.tools import Tool, ToolCall, ToolMode, ToolUse
from coordinator.dialogue.output_plan import OutputPlan, WantedOutput, plan_output
from coordinator.text.tokenizer import Tokenizer
from stagecoach.contract import error_facts
from stagecoach.contract.errors import ContextLengthExceededError, StagecoachError

MAX_PROMPT_TOKENS = 1 << 22
"""More than any model takes. A chat template may write any number for a message; what comes back
from the process keeps to 16 MB."""

_TEXT, _CHAT, _TOKEN_IDS, _OUTPUT = b"t", b"c", b"i", b"o"
_DONE, _REFUSED = b"d", b"r"


def encode_call(prompt: TextPrompt | ChatPrompt) -> bytes:
    """The call that asks for the token ids of a prompt."""
    kind = _TEXT if isinstance(prompt, TextPrompt) else _CHAT
    text = json.dumps(_facts(prompt), ensure_ascii=False, default=_facts)
    # JSON may bring half of a surrogate pair; the tokenizer says so.
    return kind + text.encode(errors="surrogatepass")


def detokenize_call(token_ids: "array[int]") -> bytes:
    """The call that asks for the text of token ids."""
    return _TOKEN_IDS + token_ids.tobytes()


def plan_call(wanted: WantedOutput) -> bytes:
    """The call that asks for the plan of an output."""
    content = wanted.content and [wanted.content.kind.value, wanted.content.text]
    facts = {**_facts(wanted), "content": content}
    if wanted.tools is not None:
        names = wanted.tools.callable_names
        facts["tools"] = {
            **_facts(wanted.tools),
            "mode": wanted.tools.mode.value,
            "callable_names": None if names is None else sorted(names),
        }
    text = json.dumps(facts, ensure_ascii=False, default=_facts)
    return _OUTPUT + text.encode(errors="surrogatepass")


def read_plan(answer: bytes) -> OutputPlan:
    """Reads the answer to `plan_call`.

    Raises:
        StagecoachError: There is no plan.
    """
    grammar, parameters = json.loads(bytes(_result(answer)))
    return OutputPlan(
        grammar=grammar and Grammar(kind=GrammarKind(grammar[0]), text=grammar[1]),
        text_parameters=parameters
        and {name: frozenset(listed) for name, listed in parameters.items()},
    )


def read_token_ids(answer: bytes) -> "array[int]":
    """Reads the answer to `encode_call`.

    Raises:
        StagecoachError: The prompt cannot be encoded.
    """
    token_ids = array("I")
    token_ids.frombytes(_result(answer))
    return token_ids


def read_text(answer: bytes) -> str:
    """Reads the answer to `detokenize_call`.

    Raises:
        StagecoachError: The ids cannot be detokenized.
    """
    return str(_result(answer), "utf-8")


def prepare(state: bytes) -> Callable[[bytes], bytes]:
    """Makes the job.

    Args:
        state: State that `Tokenizer.to_state` made.
    """
    tokenizer = Tokenizer.from_state(state)

    def handle(call: bytes) -> bytes:
        try:
            return _DONE + _answer(tokenizer, call[:1], call[1:])
        except StagecoachError as error:
            return _REFUSED + error_facts.to_json(error)

    return handle


def _answer(tokenizer: Tokenizer, kind: bytes, body: bytes) -> bytes:
    if kind == _TOKEN_IDS:
        token_ids = array("I")
        token_ids.frombytes(body)
        return tokenizer.detokenize(token_ids).encode()
    facts = json.loads(body.decode(errors="surrogatepass"))
    if kind == _OUTPUT:
        plan = plan_output(tokenizer.dialect, tokenizer.added_token_ids, _wanted(facts))
        grammar = plan.grammar and [plan.grammar.kind.value, plan.grammar.text]
        return json.dumps([grammar, plan.text_parameters], default=sorted).encode()
    prompt: TextPrompt | ChatPrompt
    if kind == _TEXT:
        prompt = TextPrompt(**facts)
    else:
        messages = tuple(map(_message, facts.pop("messages")))
        tools = tuple(Tool(**tool) for tool in facts.pop("tools"))
        prompt = ChatPrompt(messages=messages, tools=tools, **facts)
    prompt_ids = tokenizer.encode_prompt(prompt)
    if len(prompt_ids) > MAX_PROMPT_TOKENS:
        raise ContextLengthExceededError(
            f"the prompt has {len(prompt_ids)} tokens, at most {MAX_PROMPT_TOKENS} are taken",
            limit=MAX_PROMPT_TOKENS,
        )
    return array("I", prompt_ids).tobytes()


def _wanted(facts: dict[str, Any]) -> WantedOutput:
    content, tools = facts.pop("content"), facts.pop("tools")
    if tools is not None:
        names = tools.pop("callable_names")
        tools = ToolUse(
            tools=tuple(Tool(**tool) for tool in tools.pop("tools")),
            mode=ToolMode(tools.pop("mode")),
            callable_names=None if names is None else frozenset(names),
            **tools,
        )
    grammar = content and Grammar(kind=GrammarKind(content[0]), text=content[1])
    return WantedOutput(tools=tools, content=grammar, **facts)


def _message(facts: dict[str, Any]) -> ChatMessage:
    calls = tuple(ToolCall(**call) for call in facts.pop("tool_calls"))
    return ChatMessage(tool_calls=calls, **facts)


def _result(answer: bytes) -> memoryview:
    body = memoryview(answer)[1:]
    if answer[:1] == _REFUSED:
        raise error_facts.from_json(bytes(body))
    return body


def _facts(
    value: TextPrompt | ChatPrompt | ChatMessage | Tool | ToolCall | ToolUse | WantedOutput,
) -> Mapping[str, object]:
    """The fields of a dataclass, which `dataclasses.asdict` would copy one by one."""
    return {field.name: getattr(value, field.name) for field in fields(value)}
