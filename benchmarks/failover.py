"""How long tokens stand still when a server dies that another one stands in for.

Two servers for each of three stages, float32 on this machine's CPU, one thread each; eight greedy
streams over both pipelines. One server after another is killed in their middle, and started again
by `coordinator-cli up`. Every text is compared with that of the same request undisturbed.

Columns: requests complete and equal, failed with a typed error, and lost; seconds that the stream
which stood still the longest did so; median milliseconds between two tokens of a stream before.
"""

import argparse
import asyncio
import os
import signal
import time
from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.cluster import running_cluster
from benchmarks.faults import incident, pauses
from benchmarks.report import print_json, print_table
from coordinator.bench.prompts import COMMON_VOCAB_SIZE, fixed_prompts
from stagecoach.client import AsyncClient
from tests.faults.reference import Continuation
from tests.faults.traffic import Traffic
from tests.faults.waiting import eventually

NUM_STREAMS = 8
NUM_STAGES = 3
NUM_PROMPT_TOKENS = 16
TOKENS_BEFORE = 8
"""Of every stream, when the server is killed."""
END_S = 120.0
COLUMNS = (
    "killed",
    "complete",
    "failed",
    "lost",
    "longest pause, s",
    "ms/token",
)


async def undisturbed(client: AsyncClient, num_tokens: int) -> list[Continuation]:
    """What the model generates when nothing breaks, all streams at once."""
    vocab_size = min(COMMON_VOCAB_SIZE, (await client.status()).stages[0].vocab_size)
    prompts = fixed_prompts(NUM_STREAMS, NUM_PROMPT_TOKENS, vocab_size=vocab_size)
    done = await asyncio.gather(
        *(client.complete(prompt, max_tokens=num_tokens, ignore_eos=True) for prompt in prompts)
    )
    return [
        Continuation((*prompt, *one.token_ids)) for prompt, one in zip(prompts, done, strict=True)
    ]


class Kill(NamedTuple):
    """What became of eight streams; the row of the table."""

    stage: str
    """Whose server was killed."""
    num_complete: int
    num_failed: int
    num_lost: int
    longest_pause_s: float
    before_ms: float
    """Median time between two tokens of a stream until then."""


async def kill(
    client: AsyncClient, texts: Sequence[Continuation], index: int, num_tokens: int
) -> Kill:
    """Kills a server of a stage under eight streams."""
    await _until_all_serve(client)
    traffic = Traffic.start(
        client, texts, num_tokens=num_tokens, num_prompt_tokens=lambda _: NUM_PROMPT_TOKENS
    )
    await traffic.until_each_has(TOKENS_BEFORE, within_s=END_S)
    stages = (await client.status()).stages
    pid = next(stage.pid for stage in stages if stage.index == index and stage.pid is not None)
    struck_s = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    await traffic.ended(END_S)
    what = incident(traffic.streams, struck_s, None)
    all_pauses = [pause for stream in traffic.streams for pause in pauses(stream, struck_s)]
    return Kill(
        stage=f"stage {index}",
        num_complete=what.num_complete,
        num_failed=what.num_failed,
        num_lost=what.num_lost,
        longest_pause_s=max(all_pauses)[0],
        before_ms=what.before_ms,
    )


async def _until_all_serve(client: AsyncClient) -> None:
    """Waits until every server takes part in a pipeline."""

    async def all_serve() -> bool:
        stages = (await client.status()).stages
        return all(stage.pipeline is not None for stage in stages)

    await eventually(all_serve, within_s=END_S, what="every server is in a pipeline", every_s=0.5)


async def measure(options: argparse.Namespace) -> list[Kill]:
    """Kills a server of each stage in turn."""
    flags = ["--replicas", "2", "--threads", "1"]
    with running_cluster(
        options.model, num_stages=NUM_STAGES, dtype="float32", flags=flags
    ) as address:
        async with AsyncClient(address) as client:
            await _until_all_serve(client)
            texts = await undisturbed(client, options.output_tokens)
            return [
                await kill(client, texts, turn % NUM_STAGES, options.output_tokens)
                for turn in range(options.kills)
            ]


def main() -> None:
    """Prints the table; exits with 1 when a request was lost."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="demo")
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument("--output-tokens", type=int, default=40)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    rows = asyncio.run(measure(options))
    if options.json:
        print_json({"model": options.model, "columns": COLUMNS, "rows": rows})
    else:
        title = f"Failover, {options.model}, {NUM_STREAMS} greedy streams, 2 servers a stage"
        print_table(title, COLUMNS, rows)
    if any(row.num_lost for row in rows):
        raise SystemExit("requests were lost")


if __name__ == "__main__":
    main()
