"""Writes a conversation to a file."""

import json
from pathlib import Path

from coordinator.cli.chat.conversation import Conversation
from stagecoach.client import ChatMessage
from stagecoach.contract.errors import InvalidArgumentError


def write_transcript(
    path: Path, conversation: Conversation, *, model: str, may_replace: bool
) -> None:
    """Writes a conversation as JSON to a `.json` file, and as text to any other.

    Args:
        path: The file.
        conversation: What was said.
        model: Name of the model.
        may_replace: Overwrite a file that exists.

    Raises:
        InvalidArgumentError: The file exists, or cannot be written.
    """
    messages = conversation.messages()
    if path.suffix == ".json":
        turns = [_turn_json(turn) for turn in messages]
        content = json.dumps({"model": model, "messages": turns}, ensure_ascii=False, indent=2)
    else:
        content = "\n\n".join(f"# {turn.role}\n\n{_turn_text(turn)}" for turn in messages)
    try:
        with path.open("w" if may_replace else "x", encoding="utf-8") as file:
            file.write(content + "\n")
    except FileExistsError as error:
        raise InvalidArgumentError(
            f"{path} exists already; name another file", field="save"
        ) from error
    except OSError as error:
        raise InvalidArgumentError(f"{path}: {error.strerror}", field="save") from error


def _turn_json(turn: ChatMessage) -> dict[str, object]:
    """A turn as OpenAI writes it."""
    written: dict[str, object] = {"role": turn.role, "content": turn.content}
    if turn.tool_calls:
        written["tool_calls"] = [
            {
                "id": call.call_id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in turn.tool_calls
        ]
    if turn.tool_call_id is not None:
        written["tool_call_id"] = turn.tool_call_id
    return written


def _turn_text(turn: ChatMessage) -> str:
    calls = [f"{call.name} {call.arguments}" for call in turn.tool_calls]
    return "\n".join(part for part in (turn.content.strip(), *calls) if part)
