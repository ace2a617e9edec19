"""Tokenizing, rendering and detokenizing in a sandboxed process; see `coordinator.sandbox`.

A chat template is a program of whoever made the model, and may loop for ever; a tokenizer takes a
second for what a client can send in a moment. Both run here, and no longer than they may.
"""

import json
from array import array
from collections.abc import Callable, Mapping
from dataclasses import fields

from coordinator.core.request_spec import ChatMessage, ChatPrompt, TextPrompt
from coordinator.text.tokenizer import Tokenizer
from stagecoach.contract import error_facts
from stagecoach.contract.errors import ContextLengthExceededError, StagecoachError

MAX_PROMPT_TOKENS = 1 << 22
"""More than any model takes. A chat template may write any number for a message; what comes back
from the process keeps to 16 MB."""

_TEXT, _CHAT, _TOKEN_IDS = b"t", b"c", b"i"
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
    prompt: TextPrompt | ChatPrompt
    if kind == _TEXT:
        prompt = TextPrompt(**facts)
    else:
        messages = tuple(ChatMessage(**message) for message in facts.pop("messages"))
        prompt = ChatPrompt(messages=messages, **facts)
    prompt_ids = tokenizer.encode_prompt(prompt)
    if len(prompt_ids) > MAX_PROMPT_TOKENS:
        raise ContextLengthExceededError(
            f"the prompt has {len(prompt_ids)} tokens, at most {MAX_PROMPT_TOKENS} are taken",
            limit=MAX_PROMPT_TOKENS,
        )
    return array("I", prompt_ids).tobytes()


def _result(answer: bytes) -> memoryview:
    body = memoryview(answer)[1:]
    if answer[:1] == _REFUSED:
        raise error_facts.from_json(bytes(body))
    return body


def _facts(value: TextPrompt | ChatPrompt | ChatMessage) -> Mapping[str, object]:
    """The fields of a dataclass, which `dataclasses.asdict` would copy one by one."""
    return {field.name: getattr(value, field.name) for field in fields(value)}
