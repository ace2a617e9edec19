"""What the grammar engine says of a grammar, without text that the client did not write.

A regular expression is a Lark grammar to the engine, and patterns of schemas are written anew for
it; its messages quote both.
"""

import re
from collections.abc import Mapping

from coordinator.core.grammar import GrammarKind

_PLACE = re.compile(r"^at [0-9]+\([0-9]+\): ")
_LINE = re.compile(r"\n *1 \| start: .*", re.DOTALL)
_EXPRESSION_ERROR = re.compile(
    r"regex parse error:\n    (?P<text>[^\n]*)\n    (?P<blank> *)(?P<marks>\^+)[^\n]*\n"
    r"error: (?P<why>[^\n]*)"
)
"""The expression, and marks below the part that is wrong."""

_EMPTY = re.compile(r"Regex is empty: .*", re.DOTALL)
_NOT_DISJOINT = re.compile(
    r"(?:can't determine if )?patternProperty regexes (?P<patterns>.*) are (?:not )?disjoint.*",
    re.DOTALL,
)
_SHOWN = 40
_ROOT = "json-schema:///#"


def plain_words(kind: GrammarKind, message: str, originals: Mapping[str, str]) -> str:
    """Returns a message of the engine in words of a client.

    Args:
        kind: Kind of the grammar.
        message: Why it was refused; may have several lines.
        originals: Patterns as the client wrote them, by what was written for them.
    """
    for written, original in originals.items():
        message = message.replace(f"/{written}/", original)
    match kind:
        case GrammarKind.REGEX:
            if found := _EXPRESSION_ERROR.search(message):
                start = len(found["blank"])
                part = found["text"][start : start + len(found["marks"])]
                shown = part if len(part) <= _SHOWN else f"{part[:_SHOWN]}..."
                return f"{found['why']}: {shown}"
            return _LINE.sub("", _PLACE.sub("", message))
        case GrammarKind.JSON_SCHEMA:
            said = _EMPTY.sub("no string conforms to all that is asked for", message)
            said = _NOT_DISJOINT.sub(
                r"patternProperties \g<patterns> is not supported: one key may match both", said
            )
            return said.replace(_ROOT, "#")
    return message
