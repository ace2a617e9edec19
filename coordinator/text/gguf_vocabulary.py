"""The tokenizer fields of a GGUF file, checked once."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Self, TypeVar

from coordinator.text.end_tokens import end_tokens
from coordinator.text.gguf_splits import MISSING
from stagecoach.contract.errors import ModelFilesError
from stagecoach.model_files.frozen_json import shown

_PREFIX = "tokenizer.ggml."

NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4
"""Values of `token_types` that say how text is matched with a token."""

_SPECIAL_NAMES = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}

_DEFAULT_IDS = MappingProxyType(
    {"llama": MappingProxyType({"unknown_token_id": 0, "bos_token_id": 1, "eos_token_id": 2})}
)
"""What SentencePiece numbers so unless told otherwise, by the kind of tokenizer."""

_END_FIELDS = ("eos_token_id", "eot_token_id", "eom_token_id")

_PHI_3 = ("phi-3", "phi3")
"""What the name of a model holds whose control tokens take the spaces after them, in llama.cpp."""

_NOT_STRIPPING = frozenset({"<unk>", "<s>", "<|endoftext|>"})
"""Tokens of Phi-3 that leave the spaces after them."""

T = TypeVar("T", str, int, float, bool)


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufVocabulary:
    """What the metadata says, by the names of the GGUF specification."""

    model: str
    """Kind of tokenizer."""
    pre: str
    """Name of the split of text before BPE."""
    tokens: list[str]
    """Texts of the tokens, by id."""
    token_types: list[int]
    """Types of the tokens, by id."""
    scores: list[float]
    """Scores of the tokens, by id; empty when the file has none."""
    merges: list[str] | None
    """Merges in order of application. None when the file does not have the field."""
    adds_bos: bool | None
    """Whether a begin token is put before a text; None where the file leaves it to the kind of
    tokenizer."""
    adds_eos: bool
    adds_space_prefix: bool
    special_tokens: Mapping[str, str]
    """Tokens by the name that chat templates use, such as `bos_token`."""
    end_token_ids: frozenset[int]
    """Tokens that end a text or a turn, because the file says so or by what they are called."""
    special_contents: tuple[str, ...]
    """Tokens that are no ordinary text: those of the types for it, and those that end something,
    whose type is wrong in some files."""
    takes_spaces: bool
    """Whether most extraordinary tokens take the spaces that follow them; see `strips_after`."""

    @classmethod
    def parse(cls, metadata: Mapping[str, object]) -> Self:
        """Reads fields by their full names, `tokenizer.ggml.*`.

        Raises:
            ModelFilesError: One is missing, has a wrong type, or contradicts the tokens.
        """
        tokens = _list(metadata, "tokens", str)
        types = _by_token(metadata, "token_type", int, tokens) or [NORMAL] * len(tokens)
        model = _required(metadata, "model", str)
        special = [
            token
            for token, token_type in zip(tokens, types, strict=True)
            if token_type in (UNKNOWN, CONTROL) and token
        ]
        name = metadata.get("general.name")
        extraordinary = [token for token, kind in zip(tokens, types, strict=True) if kind != NORMAL]
        ends = end_tokens(tokens, extraordinary)
        return cls(
            model=model,
            pre=_optional(metadata, "pre", str) or MISSING,
            tokens=tokens,
            token_types=types,
            scores=_scores(metadata, tokens),
            merges=_list(metadata, "merges", str) if _PREFIX + "merges" in metadata else None,
            adds_bos=_optional(metadata, "add_bos_token", bool),
            adds_eos=_optional(metadata, "add_eos_token", bool) or False,
            adds_space_prefix=_optional(metadata, "add_space_prefix", bool) is not False,
            special_tokens={
                name: tokens[token_id]
                for name, field in _SPECIAL_NAMES.items()
                if (token_id := _token_id(metadata, field, tokens, _DEFAULT_IDS.get(model, {})))
                is not None
            },
            end_token_ids=frozenset(
                token_id
                for field in _END_FIELDS
                if (token_id := _token_id(metadata, field, tokens, _DEFAULT_IDS.get(model, {})))
                is not None
            )
            | {token_id for token_id, token in enumerate(tokens) if token in ends},
            special_contents=tuple(
                dict.fromkeys([*special, *(token for token in tokens if token in ends)])
            ),
            takes_spaces=isinstance(name, str) and any(one in name.lower() for one in _PHI_3),
        )

    def strips_after(self, token: str) -> bool:
        """Whether a token that is no ordinary text takes the spaces that follow it."""
        return self.takes_spaces and token not in _NOT_STRIPPING

    def contents_of(self, token_type: int) -> list[str]:
        """Returns the tokens of a type, but for special ones."""
        special = frozenset(self.special_contents)
        return [
            token
            for token, kind in zip(self.tokens, self.token_types, strict=True)
            if kind == token_type and token and token not in special
        ]


def _optional(metadata: Mapping[str, object], name: str, kind: type[T]) -> T | None:
    value = metadata.get(_PREFIX + name)
    if value is None or isinstance(value, kind):
        return value
    raise ModelFilesError(f"{_PREFIX}{name} is not of type {kind.__name__}")


def _required(metadata: Mapping[str, object], name: str, kind: type[T]) -> T:
    value = _optional(metadata, name, kind)
    if value is None:
        raise ModelFilesError(f"{_PREFIX}{name} is missing")
    return value


def _list(metadata: Mapping[str, object], name: str, kind: type[T]) -> list[T]:
    values = metadata.get(_PREFIX + name, [])
    if isinstance(values, list) and all(isinstance(value, kind) for value in values):
        return values
    raise ModelFilesError(f"{_PREFIX}{name} is not a list of {kind.__name__}")


def _by_token(
    metadata: Mapping[str, object], name: str, kind: type[T], tokens: list[str]
) -> list[T]:
    values = _list(metadata, name, kind)
    if values and len(values) != len(tokens):
        raise ModelFilesError(
            f"{_PREFIX}{name} has {len(values)} elements for {len(tokens)} tokens"
        )
    return values


def _scores(metadata: Mapping[str, object], tokens: list[str]) -> list[float]:
    scores = _by_token(metadata, "scores", float, tokens)
    for token_id, score in enumerate(scores):
        if not math.isfinite(score):
            raise ModelFilesError(
                f"{_PREFIX}scores is {shown(score)} at token {token_id}, must be finite"
            )
    return scores


def _token_id(
    metadata: Mapping[str, object], name: str, tokens: list[str], defaults: Mapping[str, int]
) -> int | None:
    token_id = _optional(metadata, name, int)
    if isinstance(token_id, bool):
        raise ModelFilesError(f"{_PREFIX}{name} is not of type int")
    if token_id is None and defaults.get(name, len(tokens)) < len(tokens):
        return defaults[name]
    if token_id is not None and not 0 <= token_id < len(tokens):
        raise ModelFilesError(f"{_PREFIX}{name} is {token_id}, there are {len(tokens)} tokens")
    return token_id
