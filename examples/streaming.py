"""Streams an answer as it grows, and says what it cost. Run as `python -m examples.streaming`."""

import os
import sys

from stagecoach import Client, StagecoachError

ADDRESS = os.environ.get("STAGECOACH_COORDINATOR", "localhost:50050")
CHAT = [
    {"role": "system", "content": "You answer in one sentence."},
    {"role": "user", "content": "What is the capital of France?"},
]


def main() -> None:
    """Streams one answer."""
    with Client(ADDRESS) as client, client.generate(CHAT, max_tokens=48) as stream:
        for event in stream:
            print(event.text, end="", flush=True)
        done = stream.result()
    print(
        f"\n{done.usage.num_completion_tokens} tokens at {done.tokens_per_second:.1f} a second,"
        f" ended by {done.finish_reason}"
    )


if __name__ == "__main__":
    try:
        main()
    except StagecoachError as error:
        sys.exit(f"error: {error}")
