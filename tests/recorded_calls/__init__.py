"""What chat templates that strangers wrote make of calls of tools; see README.md."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from coordinator.dialogue.thinking import Thinking

ARGUMENTS = ({"city": 'Zürich "x"', "days": 3, "opts": {"a": [1, True]}}, {"x": 1.5})
"""What the calls were given."""

TOOLS = {"get_weather": ["city"], "other_fn": list[str]()}
"""The tools, and the parameters of each that are strings."""


class RecordedCalls(NamedTuple):
    """What one template wrote."""

    template: str
    format: str
    thinking: Thinking | None
    source: str
    """Marks in the template."""
    output: str
    num_calls: int


def recorded_calls() -> Sequence[RecordedCalls]:
    """Reads all."""
    lines = (Path(__file__).parent / "calls.jsonl").read_text().splitlines()
    return [
        RecordedCalls(
            facts["template"],
            facts["format"],
            facts["thinking"] and Thinking(*facts["thinking"]),
            " ".join(facts["strings"]),
            facts["output"],
            facts["num_calls"],
        )
        for facts in map(json.loads, lines)
    ]
