"""Decoding speed by batch size and by the number of micro-batches in flight.

The last column lets the coordinator measure and choose; it should be as fast as the best of the
others at every batch, and never slower than one at a time. Emulated stages by default, so that the
stages do not share this machine's cores; `--emulate none` uses real ones.
"""

import argparse
import asyncio
from statistics import median

from benchmarks.cluster import running_cluster
from benchmarks.report import print_json, print_table
from coordinator.bench.decode import decode_together, decode_tokens_per_s
from coordinator.bench.prompts import fixed_prompts
from stagecoach.client import AsyncClient

ADAPTIVE = "measured"


async def tokens_per_s(options: argparse.Namespace, depth: str) -> dict[int, float]:
    """Medians by batch size at one setting, on one cluster."""
    flags = ["--max-num-seqs", str(max(options.batch))]
    if options.emulate != "none":
        flags += ["--engine", "emulated", "--emulate", options.emulate]
    if options.threads:
        flags += ["--threads", str(options.threads)]
    if depth != ADAPTIVE:
        flags += ["--num-micro-batches", depth]
    speeds = {}
    with running_cluster(options.model, num_stages=options.stages, flags=flags) as address:
        async with AsyncClient(address) as client:
            for batch in options.batch:
                prompts = fixed_prompts(batch, options.prompt_tokens)
                await decode_together(client, prompts, 8)
                runs = [
                    decode_tokens_per_s(
                        await decode_together(client, prompts, options.output_tokens)
                    )
                    for _ in range(options.repeats)
                ]
                speeds[batch] = median(runs)
    return speeds


async def measure(options: argparse.Namespace) -> dict[str, dict[int, float]]:
    """One cluster after another."""
    return {depth: await tokens_per_s(options, depth) for depth in (*options.depth, ADAPTIVE)}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="shape:llama-2-13b")
    parser.add_argument("--emulate", default="rtx-3060-12gb", metavar="GPU")
    parser.add_argument("--stages", type=int, default=3)
    parser.add_argument("--threads", type=int, help="CPU threads a stage")
    parser.add_argument("--depth", nargs="*", default=["1", "3"], help="micro-batches in flight")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 96])
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    speeds = asyncio.run(measure(options))
    title = f"Decoded tokens/s: {options.model}, {options.stages} stages"
    title += "" if options.emulate == "none" else f" of emulated {options.emulate}"
    if options.json:
        print_json({"title": title, "tokens_per_s": speeds})
        return
    print_table(
        title,
        ["batch", *(f"{depth} in flight" for depth in speeds)],
        [[batch, *(row[batch] for row in speeds.values())] for batch in options.batch],
    )


if __name__ == "__main__":
    main()
