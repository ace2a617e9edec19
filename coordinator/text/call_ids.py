"""Ids of calls for templates that take only nine letters or digits, as those of Mistral.

A history may have been written by another client or for another model, with ids of any form.
"""

import string
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256

from coordinator.core.request_spec import ChatMessage

_CHARS = string.digits + string.ascii_letters
_NUM_CHARS = 9


def nine_character_ids(messages: Sequence[ChatMessage]) -> list[ChatMessage]:
    """The same conversation, in which each id of a call has nine letters or digits.

    The same id becomes the same one everywhere and always: results still name their calls, and a
    conversation that goes on begins as it did before. What has that form already stays.
    """
    return [
        replace(
            message,
            tool_calls=tuple(
                replace(call, call_id=nine_characters(call.call_id)) for call in message.tool_calls
            ),
            tool_call_id=None
            if message.tool_call_id is None
            else nine_characters(message.tool_call_id),
        )
        for message in messages
    ]


def nine_characters(call_id: str) -> str:
    """An id as it is, if it has nine ASCII letters or digits, else nine that stand for it."""
    if len(call_id) == _NUM_CHARS and call_id.isascii() and call_id.isalnum():
        return call_id
    number = int.from_bytes(sha256(call_id.encode()).digest())
    chars = []
    for _ in range(_NUM_CHARS):
        number, place = divmod(number, len(_CHARS))
        chars.append(_CHARS[place])
    return "".join(chars)
