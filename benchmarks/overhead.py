"""Time per token that is not compute inside the stages: three stages on localhost, batch 1.

The same split as that of `coordinator-cli bench`, over more repeats and as shares of the overhead.
Prints medians over the repeats, in milliseconds.
"""

import argparse
import asyncio
from dataclasses import asdict

from benchmarks.cluster import running_cluster
from benchmarks.report import print_json, print_table
from coordinator.bench.decode import decode
from coordinator.bench.prompts import fixed_prompts
from coordinator.bench.time_split import TimeSplit
from stagecoach.client import AsyncClient


async def measure(options: argparse.Namespace) -> TimeSplit:
    """Runs the requests one after another; medians over the repeats."""
    [prompt] = fixed_prompts(1, options.prompt_tokens)
    splits = []
    flags = ["--threads", str(options.threads)] if options.threads else []
    with running_cluster(
        options.model, num_stages=options.stages, dtype=options.dtype, flags=flags
    ) as address:
        async with AsyncClient(address) as client:
            await decode(client, prompt, options.output_tokens)  # warms up
            for _ in range(options.repeats):
                request = await decode(client, prompt, options.output_tokens)
                splits.append(TimeSplit.of([request]))
    return TimeSplit.median(splits)


def parse_options() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="demo")
    parser.add_argument("--stages", type=int, default=3)
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("--threads", type=int, help="CPU threads a stage")
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def main() -> None:
    """Prints the split."""
    options = parse_options()
    split = asyncio.run(measure(options))
    parts = asdict(split)
    if options.json:
        totals = {"total": split.total, "overhead": split.overhead}
        print_json(
            {"model": options.model, "stages": options.stages, "ms_per_token": totals | parts}
        )
        return
    del parts["compute"]
    print_table(
        f"Time per token, ms: {options.model}, {options.stages} stages on localhost, batch 1",
        ["part", "ms", "share of overhead"],
        [
            ["total", split.total, ""],
            ["compute in the stages", split.compute, ""],
            ["overhead", split.overhead, ""],
            *([f"  {name}", ms, f"{ms / split.overhead:.0%}"] for name, ms in parts.items()),
        ],
    )


if __name__ == "__main__":
    main()
