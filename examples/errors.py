"""Shows what each kind of failure looks like to a caller. `python -m examples.errors`."""

import os
import sys

from stagecoach import (
    Client,
    ContextLengthExceededError,
    DeadlineExceededError,
    InvalidArgumentError,
    StagecoachError,
    UnavailableError,
)

ADDRESS = os.environ.get("STAGECOACH_COORDINATOR", "localhost:50050")


def main() -> None:
    """Provokes four errors; every one is a class of its own."""
    with Client(ADDRESS) as client:
        try:
            client.complete("Hello", temperature=400)
        except InvalidArgumentError as error:
            print(f"a parameter is wrong, {error.field}: {error}")
        try:
            client.complete("Hello " * 100_000)
        except ContextLengthExceededError as error:
            print(f"it cannot fit: {error}")
        try:
            client.complete("Hello", max_tokens=1000, ignore_eos=True, timeout_s=0.2)
        except DeadlineExceededError as error:
            print(f"it took too long: {error}")
    with Client("localhost:1") as nobody:
        try:
            nobody.complete("Hello")
        except UnavailableError as error:
            print(f"nobody is there: {error}")


if __name__ == "__main__":
    try:
        main()
    except StagecoachError as error:
        sys.exit(f"error: {error}")
