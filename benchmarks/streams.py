"""Many clients that stream over HTTP at once, on emulated stages; and readers that stall.

First, all clients read: the time between two tokens of a stream, over all streams. Then some of as
many clients stop reading in the middle: what that costs the others and the coordinator, and how
long it takes until their connections are ended.
"""

import argparse
import asyncio
import random
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import quantiles

import psutil

from benchmarks.cluster import Doors, running_doors
from benchmarks.http_stream import request, token_times
from benchmarks.report import print_json, print_table

GPU = "rtx-3060-12gb"
VOCABULARY = range(100, 30_000)
STALLED_CHOICES = 4
"""Of a client that stalls, so that more is sent than the buffers on the way hold."""
SMALL_BUFFER_BYTES = 4096
DEADLINE_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Gaps:
    """Times between two tokens of one stream, over all streams, in milliseconds."""

    p50: float
    p99: float
    worst_stream_p50: float
    """The median of the stream whose median is highest: one that starves shows here."""

    @classmethod
    def of(cls, streams: Sequence[Sequence[float]]) -> "Gaps":
        """Of the arrival times of every stream, in seconds; the first token of each is left out."""
        gaps = [
            [1e3 * (later - earlier) for earlier, later in pairwise(times[1:])] for times in streams
        ]
        every = quantiles([gap for stream in gaps for gap in stream], n=100)
        return cls(
            p50=every[49], p99=every[98], worst_stream_p50=max(quantiles(one)[1] for one in gaps)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Stalls:
    """What readers that stall do."""

    others: Gaps
    ended_after_s: float
    """From their requests until the coordinator had no connection of theirs any more."""
    grown_mib: float
    """How much larger the coordinator was at its largest than before."""


def random_prompt(num_tokens: int) -> list[int]:
    """A prompt that shares no prefix with another."""
    return random.choices(VOCABULARY, k=num_tokens)


async def stream_all(doors: Doors, num_streams: int, options: argparse.Namespace) -> Gaps:
    """Streams to that many clients at once."""
    streams = await asyncio.gather(
        *(
            token_times(doors.http, random_prompt(options.prompt_tokens), options.output_tokens)
            for _ in range(num_streams)
        )
    )
    return Gaps.of(streams)


async def stall(doors: Doors, options: argparse.Namespace) -> Stalls:
    """Lets some clients stop reading while the others stream."""
    process = psutil.Process(doors.pid)
    before_bytes = largest_bytes = process.memory_info().rss
    stalled = [
        open_stalled(doors.http, options.prompt_tokens, options.stalled_tokens)
        for _ in range(options.stalled)
    ]
    started = time.monotonic()
    others = asyncio.create_task(stream_all(doors, options.streams - options.stalled, options))
    peers = {one.getsockname() for one in stalled}
    while peers & {one.raddr for one in process.net_connections("tcp4")}:
        await asyncio.sleep(0.25)
        largest_bytes = max(largest_bytes, process.memory_info().rss)
        if time.monotonic() > started + DEADLINE_S:
            sys.exit(f"readers that stall are still connected after {DEADLINE_S:g} s")
    ended_after_s = time.monotonic() - started
    for one in stalled:
        one.close()
    return Stalls(
        others=await others,
        ended_after_s=ended_after_s,
        grown_mib=(largest_bytes - before_bytes) / 2**20,
    )


def open_stalled(address: str, prompt_tokens: int, num_tokens: int) -> socket.socket:
    """Sends a request on a connection that nobody reads, with as small a buffer as can be."""
    host, _, port = address.partition(":")
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER_BYTES)
    connection.connect((host, int(port)))
    connection.sendall(request(random_prompt(prompt_tokens), num_tokens, STALLED_CHOICES))
    return connection


async def measure(doors: Doors, options: argparse.Namespace) -> tuple[Gaps, Stalls | None]:
    """Runs both parts."""
    await stream_all(doors, options.streams, options)  # warms up; the depth is measured by then
    gaps = await stream_all(doors, options.streams, options)
    return gaps, await stall(doors, options) if options.stalled else None


def parse_options() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="shape:llama-1b")
    parser.add_argument("--stages", type=int, default=3)
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--stalled", type=int, default=8, help="of them, in the second part")
    parser.add_argument("--prompt-tokens", type=int, default=16)
    parser.add_argument("--output-tokens", type=int, default=192)
    parser.add_argument("--stalled-tokens", type=int, default=1500)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def main() -> None:
    """Prints both parts."""
    options = parse_options()
    with running_doors(
        options.model,
        num_stages=options.stages,
        flags=["--engine", "emulated", "--emulate", GPU],
    ) as doors:
        gaps, stalls = asyncio.run(measure(doors, options))
    if options.json:
        print_json(
            {
                "model": options.model,
                "emulated": True,
                "streams": options.streams,
                "gaps_ms": asdict(gaps),
                "stalls": stalls and asdict(stalls),
            }
        )
        return
    rows = {f"{options.streams} read": gaps}
    if stalls is not None:
        num_readers = options.streams - options.stalled
        rows[f"{num_readers} read, {options.stalled} stall"] = stalls.others
    print_table(
        f"Time between two tokens, ms: {options.model}, {options.stages} emulated {GPU}",
        ["clients", "p50", "p99", "p99 / p50", "slowest stream's p50"],
        [
            [name, one.p50, one.p99, one.p99 / one.p50, one.worst_stream_p50]
            for name, one in rows.items()
        ],
    )
    if stalls is not None:
        print(
            f"Readers that stall were disconnected after {stalls.ended_after_s:.1f} s; the "
            f"coordinator grew by {stalls.grown_mib:.1f} MiB."
        )


if __name__ == "__main__":
    main()
