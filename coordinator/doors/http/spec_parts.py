"""What the doors of HTTP have in common on the way from a field to what the engine takes."""

import json
from collections.abc import Mapping
from typing import NamedTuple

from coordinator.core.grammar import Grammar, GrammarKind
from coordinator.core.request_spec import MAX_UINT32
from coordinator.doors.http.schema.sampling import NO_LIMIT

NO_SEED = -1
"""What other servers take for no seed."""


class Truncation(NamedTuple):
    """Which tokens may be drawn, as the engine takes it."""

    top_p: float
    top_k: int


def truncation(top_p: float | None, top_k: int | None = None) -> Truncation:
    """Reads both fields: of the probability no share at all is the likeliest token alone.

    Args:
        top_p: Share that is kept; None: all.
        top_k: Tokens that are kept; None, 0 or less: all.
    """
    return Truncation(top_p or 1.0, 1 if top_p == 0 else max(top_k or 0, 0))


def max_tokens_of(wanted: int | None) -> int | None:
    """What the engine takes for a number of tokens; it gives no more than fit anyway."""
    return None if wanted in (None, NO_LIMIT) else min(wanted, MAX_UINT32)


def json_grammar(schema: Mapping[str, object] | str | None) -> Grammar:
    """The grammar of JSON that conforms to a schema, or of any object.

    Args:
        schema: The schema, or its text; None: any object.

    Raises:
        InvalidArgumentError: It is too long.
    """
    if schema is None:
        return Grammar(kind=GrammarKind.JSON_OBJECT)
    text = schema if isinstance(schema, str) else json.dumps(schema, ensure_ascii=False)
    return Grammar(kind=GrammarKind.JSON_SCHEMA, text=text)
