"""KV memory in use under four times more requests than fit.

Each stage gets a small `--kv-memory`. The coordinator is asked for its status all the while; the
table shows the most blocks that were in use at once, and how many requests completed.
"""

import argparse
import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from benchmarks.cluster import running_cluster
from benchmarks.report import print_json, print_table
from coordinator.bench.decode import decode
from coordinator.bench.prompts import fixed_prompts
from stagecoach.client import AsyncClient, QueueFullError, StagecoachError

POLL_INTERVAL_S = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What the coordinator's KV ledger said at one moment."""

    num_used_blocks: int
    num_running: int

    def min_tokens(self, block_size: int) -> int:
        """Tokens that are certainly held: the last block of each sequence may hold only one."""
        return self.num_used_blocks * block_size - self.num_running * (block_size - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """The outcome of the run."""

    capacity_tokens: int
    """Tokens that the blocks of the smallest stage hold."""
    peak_block_share: float
    """Most blocks in use at once, as a share of all."""
    peak_token_share: float
    """Most tokens certainly held at once, as a share of the capacity."""
    submitted: int
    completed: int
    refused: int
    """Turned away because the waiting queue was full."""
    failed: int
    """Ended with any other error."""
    preemptions: int
    free_share_afterwards: float
    """Blocks free when all had ended; 1 unless something leaked."""


async def outcome(client: AsyncClient, prompt: Sequence[int], num_tokens: int) -> str:
    """Runs one request; names how it ended."""
    try:
        await decode(client, prompt, num_tokens)
    except QueueFullError:
        return "refused"
    except StagecoachError:
        return "failed"
    return "completed"


async def poll_usage(client: AsyncClient, usages: list[Usage]) -> None:
    """Notes the ledger's state until cancelled."""
    while True:
        status = await client.status()
        used = status.num_kv_blocks - status.num_free_kv_blocks
        usages.append(Usage(num_used_blocks=used, num_running=status.num_running))
        await asyncio.sleep(POLL_INTERVAL_S)


async def measure(options: argparse.Namespace) -> Capacity:
    """Submits everything at once and watches."""
    flags = ["--kv-memory", options.kv_memory]
    usages: list[Usage] = []
    with running_cluster(options.model, num_stages=options.stages, flags=flags) as address:
        async with AsyncClient(address) as client:
            status = await client.status()
            block_size = status.stages[0].kv_block_size
            capacity_tokens = status.num_kv_blocks * block_size
            num_tokens_each = options.prompt_tokens + options.output_tokens
            num_requests = -(-options.times * capacity_tokens // num_tokens_each)
            polling = asyncio.create_task(poll_usage(client, usages))
            outcomes = Counter(
                await asyncio.gather(
                    *(
                        outcome(client, prompt, options.output_tokens)
                        for prompt in fixed_prompts(num_requests, options.prompt_tokens)
                    )
                )
            )
            polling.cancel()
            after = await client.status()
    peak_tokens = max(usage.min_tokens(block_size) for usage in usages)
    return Capacity(
        capacity_tokens=capacity_tokens,
        peak_block_share=max(usage.num_used_blocks for usage in usages) / status.num_kv_blocks,
        peak_token_share=peak_tokens / capacity_tokens,
        submitted=num_requests,
        completed=outcomes["completed"],
        refused=outcomes["refused"],
        failed=outcomes["failed"],
        preemptions=after.num_preemptions,
        free_share_afterwards=after.num_free_kv_blocks / after.num_kv_blocks,
    )


def parse_options() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="demo")
    parser.add_argument("--stages", type=int, default=3)
    parser.add_argument("--kv-memory", default="64MiB", help="of each stage")
    parser.add_argument("--times", type=int, default=4, help="how many times more than fits")
    parser.add_argument("--prompt-tokens", type=int, default=384)
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def main() -> None:
    """Prints the outcome."""
    options = parse_options()
    capacity = asyncio.run(measure(options))
    if options.json:
        print_json({"model": options.model, "kv_memory": options.kv_memory, **asdict(capacity)})
        return
    print_table(
        f"KV memory: {options.model}, {options.stages} stages, {options.kv_memory} each, "
        f"{options.times} times more requests than fit",
        ["", "value"],
        [
            ["tokens that fit", capacity.capacity_tokens],
            ["blocks in use at the peak", f"{capacity.peak_block_share:.1%}"],
            ["tokens in use at the peak, at least", f"{capacity.peak_token_share:.1%}"],
            ["requests submitted", capacity.submitted],
            ["  completed", capacity.completed],
            ["  refused", capacity.refused],
            ["  failed", capacity.failed],
            ["preemptions", capacity.preemptions],
            ["blocks free afterwards", f"{capacity.free_share_afterwards:.1%}"],
        ],
    )


if __name__ == "__main__":
    main()
