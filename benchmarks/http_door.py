"""What the HTTP door adds to the gRPC door: batch 1, both in turns on one emulated cluster.

The stages wait the time of a card that is fast enough that the doors show. Prints medians over the
requests, in milliseconds; CPU is that of the coordinator.
"""

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from statistics import median
from typing import NamedTuple

import psutil

from benchmarks.cluster import Doors, running_doors
from benchmarks.http_stream import token_times
from benchmarks.report import print_json, print_table
from coordinator.bench.prompts import fixed_prompts
from stagecoach.client import AsyncClient

MODEL = "shape:llama-160m"
GPU = "rtx-3060-12gb"


class Cost(NamedTuple):
    """Of one request, in milliseconds."""

    first_token: float
    """From sending the request."""
    token: float
    """Between two tokens, on average."""
    cpu: float
    """Of the coordinator, a token."""


Timed = Callable[[Sequence[int], int], Awaitable[list[float]]]
"""Runs a request; returns when it was sent and when each of its events came, in seconds."""


async def cost_of(timed: Timed, prompt: Sequence[int], num_tokens: int, pid: int) -> Cost:
    """Runs one request through one door."""
    process = psutil.Process(pid)
    before = process.cpu_times()
    times = await timed(prompt, num_tokens)
    after = process.cpu_times()
    cpu_s = after.user + after.system - before.user - before.system
    return Cost(
        first_token=1e3 * (times[1] - times[0]),
        token=1e3 * (times[-1] - times[1]) / (num_tokens - 1),
        cpu=1e3 * cpu_s / num_tokens,
    )


async def measure(doors: Doors, options: argparse.Namespace) -> dict[str, Cost]:
    """Runs the requests of both doors in turns; medians of each."""
    [prompt] = fixed_prompts(1, options.prompt_tokens)
    async with AsyncClient(doors.grpc) as client:

        async def over_grpc(prompt: Sequence[int], num_tokens: int) -> list[float]:
            sent = time.perf_counter()
            events = client.generate(prompt, max_tokens=num_tokens, ignore_eos=True)
            return [sent, *[time.perf_counter() async for _ in events]]

        async def over_http(prompt: Sequence[int], num_tokens: int) -> list[float]:
            return await token_times(doors.http, prompt, num_tokens)

        timed: dict[str, Timed] = {"gRPC": over_grpc, "HTTP": over_http}
        costs: dict[str, list[Cost]] = {name: [] for name in timed}
        for door in timed.values():
            await door(prompt, options.output_tokens)  # warms up
        for _ in range(options.repeats):
            for name, door in timed.items():
                costs[name].append(await cost_of(door, prompt, options.output_tokens, doors.pid))
    return {
        name: Cost(*(median(column) for column in zip(*rows, strict=True)))
        for name, rows in costs.items()
    }


def parse_options() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=60)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def main() -> None:
    """Prints the costs of both doors and their difference."""
    options = parse_options()
    with running_doors(
        MODEL, num_stages=1, flags=["--engine", "emulated", "--emulate", GPU]
    ) as doors:
        costs = asyncio.run(measure(doors, options))
    added = Cost(*(http - grpc for http, grpc in zip(costs["HTTP"], costs["gRPC"], strict=True)))
    if options.json:
        rows = {name: cost._asdict() for name, cost in (*costs.items(), ("added", added))}
        print_json({"model": MODEL, "emulated": True, "ms": rows})
        return
    print_table(
        f"The doors, ms: {MODEL} on one emulated {GPU}, batch 1",
        ["door", "first token", "token", "coordinator CPU a token"],
        [[name, *cost] for name, cost in (*costs.items(), ("HTTP adds", added))],
    )


if __name__ == "__main__":
    main()
