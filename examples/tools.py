"""Lets the model call a Python function, and shows all that happens. `python -m examples.tools`.

The demo model is too small to decide by itself, so that the first call is forced.
"""

import os
import sys
from typing import Literal

from stagecoach import (
    Client,
    ContentPart,
    ReasoningPart,
    RoundEnds,
    StagecoachError,
    ToolResult,
)

ADDRESS = os.environ.get("STAGECOACH_COORDINATOR", "localhost:50050")


def get_weather(city: Literal["Paris", "Rome"], days: int = 1) -> dict[str, object]:
    """Tells the weather of the next days.

    Args:
        city: Where.
        days: How many days.
    """
    return {"city": city, "days": days, "sky": "clear"}


def main() -> None:
    """Asks a question that the function can answer."""
    question = {"role": "user", "content": "How is the weather in Rome?"}
    with (
        Client(ADDRESS) as client,
        client.chat_stream(
            [question], tools=[get_weather], tool_choice="get_weather", max_tokens=64
        ) as stream,
    ):
        for event in stream:
            match event:
                case ReasoningPart() | ContentPart():
                    print(event.text, end="", flush=True)
                case RoundEnds():
                    print(f"\n({event.completion.finish_reason})")
                case ToolResult():
                    print(f"{event.call.name} {event.call.arguments} -> {event.content}")
        done = stream.result()
    print(f"{len(done.messages)} messages, {done.usage.num_completion_tokens} tokens")


if __name__ == "__main__":
    try:
        main()
    except StagecoachError as error:
        sys.exit(f"error: {error}")
