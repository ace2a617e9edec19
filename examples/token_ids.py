"""Works with token ids in place of text, in and out. Run as `python -m examples.token_ids`."""

import os
import sys

from stagecoach import Client, StagecoachError

ADDRESS = os.environ.get("STAGECOACH_COORDINATOR", "localhost:50050")


def main() -> None:
    """Continues a prompt by eight tokens, in two requests of four."""
    with Client(ADDRESS) as client:
        prompt = client.tokenize("The stagecoach left at dawn")
        print("prompt:", *prompt)
        first = client.complete(prompt, max_tokens=4, ignore_eos=True)
        print("then:", *first.token_ids)
        second = client.complete([*prompt, *first.token_ids], max_tokens=4, ignore_eos=True)
        print("then:", *second.token_ids)
        print(f"as text: {first.text + second.text!r}")


if __name__ == "__main__":
    try:
        main()
    except StagecoachError as error:
        sys.exit(f"error: {error}")
