"""A turn of a conversation that was made of a part of a request."""

from typing import NamedTuple

from coordinator.core.request_spec import ChatMessage


class PlacedTurn(NamedTuple):
    """A turn, and where it stands in the request."""

    message: ChatMessage
    place: str
    """As an error names it, such as `messages[2].content[0]`."""
