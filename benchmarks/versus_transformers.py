"""Decode speed of three stages against one process of transformers `generate`.

Same model, same cores, same run: the two take turns (A B A B), and each sleeps while the other is
measured. transformers gets the best of its dtypes at each batch size; the stages hold float16
weights. Prompts of 32 tokens, 64 decoded, end-of-sequence ignored, prefill excluded on both sides.
Prints the medians, their spread and the ratio. Wants a quiet machine.
"""

import argparse
import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from statistics import median

from benchmarks.cluster import running_cluster
from benchmarks.random_models import SHAPES, random_model
from benchmarks.report import print_json, print_table
from benchmarks.runs import Runs
from coordinator.bench.decode import decode_together, decode_tokens_per_s
from coordinator.bench.prompts import fixed_prompts
from stagecoach.client import AsyncClient

DTYPES = ("float32", "bfloat16", "float16")
CONTENDER_SHARE = 0.8
"""A dtype whose first run reaches this share of the best one's is measured in full."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Both systems at one batch size."""

    batch: int
    dtype: str
    """The best of transformers' at this batch size."""
    transformers: Runs
    stages: Runs

    @property
    def ratio(self) -> float:
        """How many times faster the stages are."""
        return self.stages.median / self.transformers.median


class Transformers:
    """Client of one worker process."""

    def __init__(self, worker: subprocess.Popen[str], options: argparse.Namespace) -> None:
        self._worker = worker
        self._options = options

    def tokens_per_s(self, batch: int, dtype: str) -> float:
        """Measures one run."""
        assert self._worker.stdin is not None
        assert self._worker.stdout is not None
        task = {
            "dtype": dtype,
            "batch": batch,
            "num_prompt_tokens": self._options.prompt_tokens,
            "num_tokens": self._options.output_tokens,
        }
        self._worker.stdin.write(json.dumps(task) + "\n")
        self._worker.stdin.flush()
        answer = self._worker.stdout.readline()
        if not answer:
            sys.exit("the transformers worker died")
        return float(json.loads(answer)["tokens_per_s"])


@contextmanager
def running_transformers(options: argparse.Namespace) -> Iterator[Transformers]:
    """Starts the worker process and ends it with the block."""
    command = [sys.executable, "-m", "benchmarks.transformers_worker", "--model", options.model]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as worker:
        yield Transformers(worker, options)


async def compare(
    batch: int, transformers: Transformers, client: AsyncClient, options: argparse.Namespace
) -> Comparison:
    """Measures both sides at one batch size, taking turns; the first run of each warms up."""
    prompts = fixed_prompts(batch, options.prompt_tokens)

    async def stages_tokens_per_s() -> float:
        return decode_tokens_per_s(await decode_together(client, prompts, options.output_tokens))

    first_runs = {dtype: transformers.tokens_per_s(batch, dtype) for dtype in DTYPES}
    await stages_tokens_per_s()
    bar = CONTENDER_SHARE * max(first_runs.values())
    contenders = {dtype: list[float]() for dtype, rate in first_runs.items() if rate >= bar}
    stages = []
    for _ in range(options.repeats):
        for dtype, rates in contenders.items():
            rates.append(transformers.tokens_per_s(batch, dtype))
        stages.append(await stages_tokens_per_s())
    dtype, best = max(contenders.items(), key=lambda item: median(item[1]))
    return Comparison(
        batch=batch,
        dtype=dtype,
        transformers=Runs(rates=tuple(best)),
        stages=Runs(rates=tuple(stages)),
    )


async def measure(options: argparse.Namespace) -> list[Comparison]:
    """Measures every batch size against one worker and one cluster."""
    flags = ["--threads", str(options.threads)] if options.threads else []
    with (
        running_transformers(options) as transformers,
        running_cluster(options.model, num_stages=options.stages, flags=flags) as address,
    ):
        async with AsyncClient(address) as client:
            return [await compare(batch, transformers, client, options) for batch in options.batch]


def parse_options() -> argparse.Namespace:
    """Reads the command line; makes the model when none is named."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="Hugging Face folder; default: random weights")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="llama-160m")
    parser.add_argument("--stages", type=int, default=3)
    parser.add_argument("--threads", type=int, help="CPU threads a stage")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.model is None:
        options.model = str(random_model(options.shape))
    return options


def main() -> None:
    """Prints the comparison."""
    options = parse_options()
    rows = asyncio.run(measure(options))
    if options.json:
        result = [asdict(row) | {"ratio": row.ratio} for row in rows]
        print_json({"model": options.model, "stages": options.stages, "rows": result})
        return
    print_table(
        f"Decode, tokens a second, median and spread of {options.repeats} runs",
        ["batch", "transformers, one process", "dtype", f"{options.stages} stages", "ratio"],
        [[row.batch, row.transformers, row.dtype, row.stages, row.ratio] for row in rows],
    )


if __name__ == "__main__":
    main()
