"""What running streams feel of a long prompt that arrives: the time between two of their tokens.

For each number of running streams: the median and the 99th percentile of that time undisturbed,
the 99th percentile and the longest while the prompt is computed, and how long that takes. The
figure to watch is the 99th percentile over the undisturbed median. Emulated stages.
"""

import argparse
import asyncio
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

from benchmarks.cluster import running_cluster
from benchmarks.report import print_json, print_table
from coordinator.bench.decode import DecodedRequest, decode
from coordinator.bench.prompts import fixed_prompts
from stagecoach.client import AsyncClient

SETTLE_TOKENS = 16
"""Tokens of each stream before anything counts."""


def gaps_ms(streams: Iterable[DecodedRequest], start_s: float, end_s: float) -> list[float]:
    """Times between two tokens of a stream of which the later arrived in an interval."""

    def gaps() -> Iterator[float]:
        for stream in streams:
            for earlier, later in pairwise(stream.arrivals_s):
                if start_s < later <= end_s:
                    yield 1e3 * (later - earlier)

    return sorted(gaps())


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value below which a share of them lies."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


async def stall(client: AsyncClient, num_streams: int, options: argparse.Namespace) -> list[float]:
    """One row of the table."""
    prompts = fixed_prompts(num_streams + 1, options.prompt_tokens)
    [*running_prompts, long_prompt] = [
        *(prompt[:32] for prompt in prompts[:-1]),
        prompts[-1],
    ]
    tasks = [
        asyncio.create_task(decode(client, prompt, options.output_tokens))
        for prompt in running_prompts
    ]
    await asyncio.sleep(options.undisturbed_s)
    started_s = time.perf_counter()
    newcomer = await decode(client, long_prompt, 1)
    streams = await asyncio.gather(*tasks)
    settled_s = max(stream.arrivals_s[SETTLE_TOKENS] for stream in streams)
    undisturbed = gaps_ms(streams, settled_s, started_s)
    disturbed = gaps_ms(streams, started_s, newcomer.arrivals_s[0])
    p50 = percentile(undisturbed, 0.5)
    p99 = percentile(disturbed, 0.99)
    return [
        p50,
        percentile(undisturbed, 0.99),
        p99,
        disturbed[-1],
        p99 / p50,
        newcomer.arrivals_s[0] - started_s,
    ]


async def measure(options: argparse.Namespace) -> dict[int, list[float]]:
    """All rows, on one cluster."""
    flags = ["--engine", "emulated", "--emulate", options.emulate]
    if options.depth:
        flags += ["--num-micro-batches", str(options.depth)]
    with running_cluster(options.model, num_stages=options.stages, flags=flags) as address:
        async with AsyncClient(address) as client:
            return {batch: await stall(client, batch, options) for batch in options.batch}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="shape:llama-2-13b")
    parser.add_argument("--emulate", default="rtx-3060-12gb", metavar="GPU")
    parser.add_argument("--stages", type=int, default=4)
    parser.add_argument("--depth", type=int, help="micro-batches in flight; default: measured")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--prompt-tokens", type=int, default=2000, help="of the long prompt")
    parser.add_argument("--output-tokens", type=int, default=160, help="of the running streams")
    parser.add_argument("--undisturbed-s", type=float, default=6.0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = asyncio.run(measure(options))
    if options.json:
        print_json({"model": options.model, "stages": options.stages, "rows": rows})
        return
    print_table(
        f"Time between tokens while a prompt of {options.prompt_tokens} tokens arrives, ms: "
        f"{options.model}, {options.stages} stages of emulated {options.emulate}",
        ["streams", "p50 before", "p99 before", "p99", "longest", "p99 / p50", "prompt, s"],
        [[batch, *row] for batch, row in rows.items()],
    )


if __name__ == "__main__":
    main()
