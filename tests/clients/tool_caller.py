"""A stand-in for a model that decides to call tools, for which the demo model is too small."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from coordinator.core.request_spec import ChatMessage, ChatPrompt
from tests.contract.scripted_engine import Script, ScriptedEngine

THOUGHT = "<think>I look.</think>\n\n"


class ToolCaller(ScriptedEngine):
    """Thinks and calls tools, one after the other, and says something when all have answered.

    What it writes is text in the format of Hermes and Qwen, written by hand. A request without
    tools, such as that for the title of a conversation, gets what is said at the end.

    Args:
        calls: Name and arguments of each call.
        says: What it says at last.
    """

    def __init__(self, calls: Sequence[Mapping[str, Any]], says: str) -> None:
        self._texts = [f"<tool_call>\n{json.dumps(call)}\n</tool_call>" for call in calls]
        self._says = says
        super().__init__(Script(says), num_chars=7)

    def next_script(self) -> Script:
        """What the latest request gets."""
        spec = self.specs[-1]
        text = self._says
        if spec.tools is not None and isinstance(spec.prompt, ChatPrompt):
            text = [*self._texts, self._says][: num_calls(spec.prompt.messages) + 1][-1]
        return Script(f"{THOUGHT}{text}")


def num_calls(messages: Sequence[ChatMessage]) -> int:
    """How many turns have called tools since the last turn of the user."""
    num = 0
    for message in messages:
        if message.role == "user":
            num = 0
        elif message.tool_calls:
            num += 1
    return num
