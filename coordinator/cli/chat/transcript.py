"""Writes a conversation to a file."""

import json
from pathlib import Path

from coordinator.cli.chat.conversation import Conversation
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
        turns = [{"role": turn.role, "content": turn.content} for turn in messages]
        content = json.dumps({"model": model, "messages": turns}, ensure_ascii=False, indent=2)
    else:
        content = "\n\n".join(f"# {turn.role}\n\n{turn.content.strip()}" for turn in messages)
    try:
        with path.open("w" if may_replace else "x", encoding="utf-8") as file:
            file.write(content + "\n")
    except FileExistsError as error:
        raise InvalidArgumentError(
            f"{path} exists already; name another file", field="save"
        ) from error
    except OSError as error:
        raise InvalidArgumentError(f"{path}: {error.strerror}", field="save") from error
