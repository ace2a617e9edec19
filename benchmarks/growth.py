"""How the coordinator's cost grows: with stages, batch, length of a sequence, requests served.

Emulated stages, so that the time of a token is known and the rest is ours: overhead is the time of
a decoded token less the compute of its stages. It may grow with the number of stages, but neither
with the length of a sequence nor with the number of requests served. The coordinator's own
processor time and memory are those of its process. Prints one table a question.
"""

import argparse
import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from statistics import median

import psutil

from benchmarks.cluster import running_cluster
from benchmarks.report import print_table
from coordinator.bench.decode import decode, decode_together
from coordinator.bench.prompts import fixed_prompts
from coordinator.bench.time_split import TimeSplit
from stagecoach.client import AsyncClient

SHORT_PROMPT_TOKENS = 32
NUM_DECODED = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """A running emulated cluster."""

    client: AsyncClient
    coordinator: psutil.Process

    @property
    def cpu_s(self) -> float:
        """Processor time that the coordinator has used."""
        times = self.coordinator.cpu_times()
        return float(times.user + times.system)

    @property
    def memory_mb(self) -> float:
        """Resident memory of the coordinator."""
        return float(self.coordinator.memory_info().rss) / 1e6


@asynccontextmanager
async def emulated_cluster(model: str, gpu: str, num_stages: int) -> AsyncIterator[Cluster]:
    """Starts a cluster and stops it with the block."""
    flags = ["--engine", "emulated", "--emulate", gpu]
    with running_cluster(model, num_stages=num_stages, flags=flags) as address:
        async with AsyncClient(address) as client:
            coordinator = psutil.Process((await client.status()).pid)
            await decode(client, fixed_prompts(1, SHORT_PROMPT_TOKENS)[0], NUM_DECODED)  # warms up
            yield Cluster(client=client, coordinator=coordinator)


async def overhead_ms(
    cluster: Cluster, *, num_prompt_tokens: int, num_tokens: int, repeats: int
) -> float:
    """Median time of a decoded token that is not compute."""
    [prompt] = fixed_prompts(1, num_prompt_tokens)
    requests = [await decode(cluster.client, prompt, num_tokens) for _ in range(repeats)]
    return median(TimeSplit.of([request]).overhead for request in requests)


async def by_stages(counts: Sequence[int], repeats: int) -> None:
    """Overhead by the number of stages."""
    rows = []
    for num_stages in counts:
        async with emulated_cluster("shape:llama-1b", "rtx-3060-12gb", num_stages) as cluster:
            ms = await overhead_ms(
                cluster,
                num_prompt_tokens=SHORT_PROMPT_TOKENS,
                num_tokens=NUM_DECODED,
                repeats=repeats,
            )
        rows.append([num_stages, ms, ms / num_stages])
    print_table("Overhead by stages, batch 1", ["stages", "ms a token", "ms a stage"], rows)


async def by_length(repeats: int) -> None:
    """Overhead by the length of prompt and output."""
    rows = []
    async with emulated_cluster("shape:llama-3.1-8b", "h100-sxm-80gb", 3) as cluster:
        for num_prompt_tokens, num_tokens in ((32, 64), (1000, 64), (8000, 64), (32, 4000)):
            ms = await overhead_ms(
                cluster,
                num_prompt_tokens=num_prompt_tokens,
                num_tokens=num_tokens,
                repeats=1 if num_tokens > NUM_DECODED else repeats,
            )
            rows.append([f"{num_prompt_tokens} + {num_tokens}", ms])
    print_table("Overhead by length, batch 1, 3 stages", ["prompt + output", "ms a token"], rows)


async def by_batch(batches: Sequence[int]) -> None:
    """The coordinator's processor time by batch size."""
    rows = []
    async with emulated_cluster("shape:llama-2-13b", "rtx-3060-12gb", 4) as cluster:
        for batch in batches:
            prompts = fixed_prompts(batch, SHORT_PROMPT_TOKENS)
            await decode_together(cluster.client, prompts, 8)
            before_s = cluster.cpu_s
            requests = await decode_together(cluster.client, prompts, NUM_DECODED)
            cpu_s = cluster.cpu_s - before_s
            elapsed_s = max(r.arrivals_s[-1] for r in requests) - min(
                r.arrivals_s[0] for r in requests
            )
            num_tokens = batch * NUM_DECODED
            rows.append(
                [batch, num_tokens / elapsed_s, 1e6 * cpu_s / num_tokens, cpu_s / elapsed_s]
            )
    print_table(
        "The coordinator's processor time by batch, 4 emulated RTX 3060, Llama-2 13B",
        ["batch", "tokens/s", "us a token", "cores"],
        rows,
    )


async def by_requests(num_requests: int, repeats: int) -> None:
    """Overhead and memory by the number of requests served."""
    rows = []
    prompts = fixed_prompts(256, SHORT_PROMPT_TOKENS)
    async with emulated_cluster("shape:llama-160m", "h100-sxm-80gb", 3) as cluster:
        served = 0
        while True:
            ms = await overhead_ms(
                cluster,
                num_prompt_tokens=SHORT_PROMPT_TOKENS,
                num_tokens=NUM_DECODED,
                repeats=repeats,
            )
            rows.append([served, ms, cluster.memory_mb])
            if served >= num_requests:
                break
            until = num_requests if served else num_requests // 10
            while served < until:
                await decode_together(cluster.client, prompts, 2)
                served += len(prompts)
    print_table(
        "After many requests, batch 1, 3 stages",
        ["requests served", "ms a token", "coordinator's memory, MB"],
        rows,
    )


async def measure(options: argparse.Namespace) -> None:
    """Answers one question after another."""
    await by_stages(options.stages, options.repeats)
    await by_length(options.repeats)
    await by_batch(options.batch)
    await by_requests(options.requests, options.repeats)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stages", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32, 96, 256])
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=5)
    asyncio.run(measure(parser.parse_args()))


if __name__ == "__main__":
    main()
