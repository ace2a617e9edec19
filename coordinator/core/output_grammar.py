"""A grammar of a whole output, of which a client wrote parts. Made by `coordinator.dialogue`."""

import json
from dataclasses import asdict, dataclass
from typing import Self

from coordinator.core.grammar import Grammar, GrammarKind

CONTENT_PART = "content"
"""Name of the part that content keeps to."""

Spelling = tuple[str | int, ...]
"""A text in pieces, of which special tokens are their ids."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GrammarPart:
    """A part that a client wrote."""

    name: str
    """By which the grammar refers to it."""
    kind: GrammarKind
    text: str
    field: str
    """Field of the request that holds it, for errors."""
    otherwise: str | None = None
    """JSON schema that stands for it if it cannot be kept to. None: it is refused then."""

    @classmethod
    def of(cls, grammar: Grammar, name: str) -> Self:
        """A grammar of a client as a part of another."""
        return cls(name=name, kind=grammar.kind, text=grammar.text, field=grammar.field)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputGrammar:
    """A grammar in Lark, which refers to parts by `@name`."""

    lark: str
    parts: tuple[GrammarPart, ...]
    opening: Spelling
    """What opens calls; empty where text is not free before it."""
    begins_with_json: bool
    """Whether the output may be a JSON value from its first character on."""
    json_after: tuple[Spelling, ...]
    """Behind these, once calls are open, stands a JSON value."""
    call_beginnings: tuple[str, ...] = ()
    """What calls begin with, where the part `content` is refused if it may begin so too."""

    def to_json(self) -> str:
        """Writes it."""
        facts = asdict(self)
        for part in facts["parts"]:
            part["kind"] = part["kind"].value
        return json.dumps(facts, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Reads what `to_json` wrote."""
        facts = json.loads(text)
        parts = tuple(
            GrammarPart(**{**part, "kind": GrammarKind(part["kind"])})
            for part in facts.pop("parts")
        )
        return cls(
            lark=facts["lark"],
            parts=parts,
            opening=tuple(facts["opening"]),
            begins_with_json=facts["begins_with_json"],
            json_after=tuple(map(tuple, facts["json_after"])),
            call_beginnings=tuple(facts["call_beginnings"]),
        )
