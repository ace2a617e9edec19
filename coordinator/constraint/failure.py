"""What llguidance says of a grammar, as a typed error."""

from coordinator.core.grammar import Grammar
from protos.errors import InvalidArgumentError

_MAX_CHARS = 300
_NOISE = "<non-verbose/>"
NO_TOKEN = "NoExtensionBias"
"""What the library says where the grammar goes on with bytes that no token begins with."""


def failure(grammar: Grammar, message: str) -> InvalidArgumentError:
    """Returns an error that names the field of a grammar and says what is wrong with it.

    Args:
        grammar: The grammar.
        message: Of the library; may have several lines.
    """
    line = " ".join(message.replace(_NOISE, "").split())
    if line == NO_TOKEN:
        line = "wants text that the model has no tokens for"
    if len(line) > _MAX_CHARS:
        line = f"{line[:_MAX_CHARS]}..."
    return InvalidArgumentError(f"{grammar.field}: {line}", field=grammar.field)
