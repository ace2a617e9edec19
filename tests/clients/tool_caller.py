"""A stand-in for a model that decides to call tools, for which the demo model is too small."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from coordinator.core.request_spec import ChatPrompt
from coordinator.dialogue.formats.call_format import IdForm
from coordinator.text.conversations import new_call_id
from tests.contract.scripted_engine import Script, ScriptedEngine

THOUGHT = "<think>I look.</think>\n\n"


class ToolCaller(ScriptedEngine):
    """Thinks and calls tools, one in each of its turns, says something, and begins again.

    What it writes is text in the format of Hermes and Qwen, written by hand. A request without
    tools, such as that for the title of a conversation, gets what is said at the end.

    Args:
        calls: Name and arguments of each call.
        says: What it says behind them.
    """

    def __init__(self, calls: Sequence[Mapping[str, Any]], says: str) -> None:
        self._turns = [f"<tool_call>\n{json.dumps(call)}\n</tool_call>" for call in calls]
        self._turns.append(says)
        super().__init__(Script(says), num_chars=7)

    def next_script(self) -> Script:
        """What the latest request gets."""
        spec = self.specs[-1]
        place = -1
        if spec.tools is not None and isinstance(spec.prompt, ChatPrompt):
            own = sum(message.role == "assistant" for message in spec.prompt.messages)
            place = own % len(self._turns)
        return Script(f"{THOUGHT}{self._turns[place]}")

    def call_ids(self) -> Callable[[], str]:
        """No two calls have one id, as of a real engine."""
        return partial(new_call_id, IdForm.CALL)
