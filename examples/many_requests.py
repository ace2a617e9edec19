"""Runs many requests at once; the coordinator batches them. `python -m examples.many_requests`."""

import asyncio
import os
import sys
import time

from stagecoach import AsyncClient, StagecoachError

ADDRESS = os.environ.get("STAGECOACH_COORDINATOR", "localhost:50050")
CITIES = ("Paris", "Rome", "Cairo", "Lima", "Oslo", "Kyoto", "Delhi", "Quito")


async def main() -> None:
    """Asks about every city at once and prints the answers in order."""
    async with AsyncClient(ADDRESS) as client, asyncio.TaskGroup() as group:
        started_s = time.monotonic()
        answers = [
            group.create_task(client.complete(f"{city} is known for", max_tokens=16))
            for city in CITIES
        ]
        for city, answer in zip(CITIES, answers, strict=True):
            print(f"{city} is known for{(await answer).text!r}")
        num_tokens = sum(len(answer.result().token_ids) for answer in answers)
        print(f"{num_tokens / (time.monotonic() - started_s):.1f} tokens a second, all together")


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except* StagecoachError as errors:
        sys.exit(f"error: {errors.exceptions[0]}")
