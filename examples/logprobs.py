"""Shows how sure the model was of every token. Run as `python -m examples.logprobs`."""

import math
import os
import sys

from stagecoach import Client, StagecoachError

ADDRESS = os.environ.get("STAGECOACH_COORDINATOR", "localhost:50050")


def main() -> None:
    """Prints each token with its probability, and the two likeliest ones at its place."""
    with Client(ADDRESS) as client:
        done = client.complete("The capital of France is", max_tokens=4, logprobs=2)
    print(f"{done.text!r}")
    for token_id, place in zip(done.token_ids, done.logprobs, strict=True):
        likeliest = ", ".join(f"{other} {math.exp(value):.0%}" for other, value in place.top)
        print(f"{token_id} {math.exp(place.logprob):.0%}, of {likeliest}")


if __name__ == "__main__":
    try:
        main()
    except StagecoachError as error:
        sys.exit(f"error: {error}")
