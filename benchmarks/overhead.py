"""Time per token that is not compute inside the stages: three stages on localhost, batch 1.

The time of one token is the client's: from the first token to the last, divided by the steps
between. The parts are sums over a request; those of a request that ends with its first token are
subtracted, so that only decode steps count. What no part explains (the event loop, the stream to
the client) is `other`. Prints medians over the repeats, in milliseconds.
"""

import argparse
import asyncio
from statistics import median

from benchmarks.cluster import running_cluster
from benchmarks.decode import DecodedRequest, decode
from benchmarks.prompts import fixed_prompts
from benchmarks.report import print_json, print_table
from coordinator.client import AsyncClient, Timings

OVERHEAD = ("serialize", "wire", "queue", "schedule", "sample", "detokenize", "other")
"""Every part but the compute."""


def sums_ns(timings: Timings) -> dict[str, int]:
    """Adds the stages up; one figure a part."""
    return {
        "compute": sum(stage.compute_ns for stage in timings.stages),
        "serialize": sum(stage.serialize_ns for stage in timings.stages),
        "wire": sum(stage.wire_ns for stage in timings.stages),
        "queue": sum(stage.queue_ns for stage in timings.stages),
        "schedule": timings.schedule_ns,
        "sample": timings.sample_ns,
        "detokenize": timings.detokenize_ns,
    }


def ms_per_token(one: DecodedRequest, many: DecodedRequest) -> dict[str, float]:
    """Splits the time of a decoded token of `many`.

    Args:
        one: A request that ended with its first token.
        many: The same request with more tokens.
    """
    num_steps = len(many.arrivals_s) - len(one.arrivals_s)
    before, after = sums_ns(one.timings), sums_ns(many.timings)
    parts = {name: (after[name] - before[name]) / num_steps / 1e6 for name in after}
    total = (many.arrivals_s[-1] - many.arrivals_s[0]) / num_steps * 1e3
    parts["other"] = total - sum(parts.values())
    return {"total": total, "overhead": total - parts["compute"], **parts}


async def measure(options: argparse.Namespace) -> dict[str, float]:
    """Runs the requests one after another; medians over the repeats."""
    [prompt] = fixed_prompts(1, options.prompt_tokens)
    runs = []
    flags = ["--threads", str(options.threads)] if options.threads else []
    with running_cluster(
        options.model, num_stages=options.stages, dtype=options.dtype, flags=flags
    ) as address:
        async with AsyncClient(address) as client:
            await decode(client, prompt, options.output_tokens)  # warms up
            for _ in range(options.repeats):
                one = await decode(client, prompt, 1)
                runs.append(ms_per_token(one, await decode(client, prompt, options.output_tokens)))
    return {name: median(run[name] for run in runs) for name in runs[0]}


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
    medians = asyncio.run(measure(options))
    if options.json:
        print_json({"model": options.model, "stages": options.stages, "ms_per_token": medians})
        return
    print_table(
        f"Time per token, ms: {options.model}, {options.stages} stages on localhost, batch 1",
        ["part", "ms", "share of overhead"],
        [
            ["total", medians["total"], ""],
            ["compute in the stages", medians["compute"], ""],
            ["overhead", medians["overhead"], ""],
            *(
                [f"  {name}", medians[name], f"{medians[name] / medians['overhead']:.0%}"]
                for name in OVERHEAD
            ),
        ],
    )


if __name__ == "__main__":
    main()
