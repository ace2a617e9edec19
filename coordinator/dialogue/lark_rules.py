"""Rules of one grammar in Lark, as llguidance reads it, and the parts that clients wrote."""

import json
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from coordinator.core.grammar import GrammarKind
from coordinator.core.output_grammar import GrammarPart, Spelling
from coordinator.dialogue.dialect import Dialect
from coordinator.dialogue.formats.call_format import CALL_ID, CALL_INDEX, CONTROL, IdForm
from stagecoach.contract.errors import InvalidArgumentError

MAX_PART_CHARS = 1 << 20
"""Characters of the schemas in one grammar; parameters that are written one by one bring their
definitions each."""

_FIELD = re.compile(f"[{CALL_ID}{CALL_INDEX}]")
_INDEX = "/[0-9]{1,3}/"
_IDS: Mapping[IdForm, str] = MappingProxyType(
    {
        IdForm.CALL: "/[a-zA-Z0-9]{9}/",
        IdForm.NINE: "/[a-zA-Z0-9]{9}/",
        IdForm.TEN: "/[a-z0-9]{10}/",
    }
)
"""Ids of calls where a model writes them."""

_ANYTHING = "true"
_ANY_OBJECT = '{"type": "object"}'


class LarkRules:
    """Rules and parts, as far as they are written.

    Args:
        dialect: Bound to the model's special tokens.
        token_ids: Ids of these, by what they spell.
    """

    def __init__(self, dialect: Dialect, token_ids: Mapping[str, int]) -> None:
        self.rules: list[str] = []
        self.parts: list[GrammarPart] = []
        self.json_after: set[str] = set()
        """Texts of the format behind which JSON stands."""
        self._token_ids = token_ids
        names = sorted(map(re.escape, dialect.controls), key=len, reverse=True)
        self._pieces = re.compile(
            f"({CONTROL}(?:{'|'.join(names) or '(?!)'})|{CALL_ID}|{CALL_INDEX})"
        )
        self._fields = {CALL_ID: _IDS[dialect.calls.id_form], CALL_INDEX: _INDEX}
        self._num_chars = 0

    def add(self, rule: str) -> None:
        """Adds a rule."""
        self.rules.append(rule)

    def json(
        self,
        name: str,
        schema: Mapping[str, Any] | bool,
        field: str,
        is_exact: bool,
        *,
        otherwise: Mapping[str, Any] | None = None,
    ) -> str:
        """Adds a part that is JSON.

        Args:
            name: Name of the part.
            schema: What it keeps to.
            field: Field of the request that holds the schema, for errors.
            is_exact: Whether a schema that cannot be kept to is refused.
            otherwise: What stands for it if not. None: any object for one of an object, else any
                value.

        Returns:
            What stands for it in rules.

        Raises:
            InvalidArgumentError: The schemas are too long together.
        """
        text = json.dumps(schema, ensure_ascii=False)
        self._num_chars += len(text)
        if self._num_chars > MAX_PART_CHARS:
            raise InvalidArgumentError(
                f"{field}: the schemas of all parameters have more than {MAX_PART_CHARS} characters"
                " with the definitions that they refer to",
                field=field,
            )
        is_object = isinstance(schema, Mapping) and schema.get("type") == "object"
        instead = _ANY_OBJECT if is_object else _ANYTHING
        if otherwise is not None:
            instead = json.dumps(otherwise)
        self.parts.append(
            GrammarPart(
                name=name,
                kind=GrammarKind.JSON_SCHEMA,
                text=text,
                field=field,
                otherwise=None if is_exact else instead,
            )
        )
        return f"@{name}"

    def spelling(self, text: str) -> Spelling:
        """A text of the format in pieces, of which special tokens are their ids."""
        return tuple(
            self._token_ids[piece[1:]] if piece.startswith(CONTROL) else piece
            for piece in self._pieces.split(text)
            if piece
        )

    def literal(self, text: str) -> str:
        """A text of the format as a rule has it."""
        written = []
        for piece in self.spelling(text):
            if isinstance(piece, int):
                written.append(f"<[{piece}]>")
            else:
                written.append(self._fields.get(piece) or json.dumps(piece, ensure_ascii=False))
        return " ".join(written)


def behind_fields(text: str) -> str:
    """The end of a text of a format in which the model fills in no more."""
    return _FIELD.split(text)[-1]
