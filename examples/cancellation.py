"""Leaves a completion early, which ends it everywhere. `python -m examples.cancellation`."""

import os
import sys
import time

from stagecoach import Client, StagecoachError

ADDRESS = os.environ.get("STAGECOACH_COORDINATOR", "localhost:50050")


def main() -> None:
    """Takes the first sentence of a long text and nothing more."""
    with Client(ADDRESS) as client:
        with client.generate("Once upon a time", max_tokens=1000, ignore_eos=True) as stream:
            for event in stream:
                print(event.text, end="", flush=True)
                if "." in event.text:
                    break
        print(f"\nleft after {len(stream.token_ids)} of 1000 tokens")
        while client.status().num_running:
            time.sleep(0.01)
        print("the coordinator has let go of it")


if __name__ == "__main__":
    try:
        main()
    except StagecoachError as error:
        sys.exit(f"error: {error}")
