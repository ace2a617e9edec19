"""Encodes a text whose control tokens count only where the template wrote them."""

import secrets
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple, Self

import tokenizers
from tokenizers import AddedToken

from coordinator.text.control_tokens import ControlTokens, ShieldedText
from stagecoach.contract.errors import InvalidArgumentError


class GuardedEncoder:
    """Encodes what a template made of shielded strings. Thread-safe.

    A text in which the client wrote no control token is encoded by the tokenizer itself, any other
    one by a second tokenizer; see `_Guarded`.

    Args:
        backend: The tokenizer; not changed.
        control: Added tokens of the tokenizer that count as control tokens.
    """

    def __init__(self, backend: tokenizers.Tokenizer, control: Collection[AddedToken]) -> None:
        self.control_tokens = ControlTokens([token.content for token in control])
        self._backend = backend
        self._control = {token.content: token for token in control}
        self._control_ids = frozenset(_id_of(backend, content) for content in self._control)

    def encode(self, rendered: str, shielded: ShieldedText) -> list[int]:
        """Returns token ids, without any that the tokenizer itself puts around a text.

        Args:
            rendered: What the template made; its control tokens are the template's.
            shielded: What was taken out of the client's strings.

        Raises:
            InvalidArgumentError: The tokenizer makes a control token of plain text.
        """
        text = shielded.restore(rendered)
        written = self.control_tokens.found_in(rendered)
        if written == self.control_tokens.found_in(text):
            token_ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
            # They would differ where text becomes a control token only when it is normalized.
            made = [token_id for token_id in token_ids if token_id in self._control_ids]
            if made == [_id_of(self._backend, content) for content in written]:
                return token_ids
        return self._encode_guarded(rendered, shielded)

    @cached_property
    def _guarded(self) -> "_Guarded":
        return _Guarded(self._backend, self._control)

    def _encode_guarded(self, rendered: str, shielded: ShieldedText) -> list[int]:
        pieces = []
        written = []
        position = 0
        for start, end in self.control_tokens.find(rendered):
            content = rendered[start:end]
            written.append(content)
            pieces += [rendered[position:start], self._guarded.stand_in(content)]
            position = end
        text = shielded.restore("".join([*pieces, rendered[position:]]))
        return self._guarded.encode(text, written)


class _Guarded:
    """A tokenizer around the same model that knows no control token.

    It knows one stand-in for each way in which control tokens take the spaces around them. So a
    text whose control tokens are replaced by their stand-ins is still encoded in one go, and what
    only looks like one is split as any other text.
    """

    def __init__(self, backend: tokenizers.Tokenizer, control: Mapping[str, AddedToken]) -> None:
        self._backend = backend
        self._control = control
        self._stand_ins = {
            way: AddedToken(
                secrets.token_hex(16),
                lstrip=way.lstrip,
                rstrip=way.rstrip,
                normalized=way.normalized,
                special=False,
            )
            for way in set(map(_Way.of, control.values()))
        }
        others = [
            token
            for _, token in sorted(backend.get_added_tokens_decoder().items())
            if token.content not in control
        ]
        self._tokenizer = _around_the_model(backend)
        self._tokenizer.add_tokens([*others, *self._stand_ins.values()])
        self._stand_in_ids = frozenset(
            self._tokenizer.token_to_id(token.content) for token in self._stand_ins.values()
        )
        self._real_ids = {
            self._tokenizer.token_to_id(token.content): _id_of(backend, token.content)
            for token in others
        }

    def stand_in(self, content: str) -> str:
        """What replaces a control token in a text."""
        return self._stand_ins[_Way.of(self._control[content])].content

    def encode(self, text: str, written: Sequence[str]) -> list[int]:
        """Ids of a text with stand-ins.

        Args:
            text: Encoded in one go.
            written: The control tokens behind the stand-ins, in order.

        Raises:
            InvalidArgumentError: Plain text becomes a control token.
        """
        control_ids = {_id_of(self._backend, content) for content in self._control}
        behind = iter(written)
        token_ids = []
        for token_id in self._tokenizer.encode(text, add_special_tokens=False).ids:
            if token_id in self._stand_in_ids:
                token_ids.append(_id_of(self._backend, next(behind)))
                continue
            real_id = self._real_ids.get(token_id, token_id)
            if real_id in control_ids:
                raise InvalidArgumentError(
                    "prompt.chat.messages has text of which the tokenizer makes the control token"
                    f" {self._backend.id_to_token(real_id)!r}",
                    field="prompt.chat.messages",
                )
            token_ids.append(real_id)
        return token_ids


class _Way(NamedTuple):
    """How an added token is matched."""

    lstrip: bool
    rstrip: bool
    normalized: bool

    @classmethod
    def of(cls, token: AddedToken) -> Self:
        return cls(token.lstrip, token.rstrip, token.normalized)


def _id_of(backend: tokenizers.Tokenizer, content: str) -> int:
    """The id of an added token."""
    token_id: int | None = backend.token_to_id(content)
    assert token_id is not None, "an added token has an id"
    return token_id


def _around_the_model(backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """A tokenizer that does the same but has no added tokens; the model is shared."""
    guarded = tokenizers.Tokenizer(backend.model)
    if backend.normalizer is not None:
        guarded.normalizer = backend.normalizer
    if backend.pre_tokenizer is not None:
        guarded.pre_tokenizer = backend.pre_tokenizer
    return guarded
