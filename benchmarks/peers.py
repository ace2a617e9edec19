"""Speed of three CPU stages against llama.cpp with three RPC servers, same machine, same weights.

Random weights of llama-160m and llama-1b, in float16 and as `llama-quantize` makes Q4_0 and Q8_0 of
them, and the file of the demo model. The two take turns (A B A B), and each sleeps while the other
is measured. llama.cpp gets the best of its thread settings at each batch size.
Prompts of 32 tokens, 64 decoded, end-of-sequence ignored, prefill excluded on both sides; prefill
is measured on its own, with one prompt of 512 tokens. Prints medians, spread and ratio. Wants a
quiet machine, cmake and a C++ compiler.
"""

import argparse
import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Self

from benchmarks.cluster import running_cluster
from benchmarks.gguf_export import export_gguf
from benchmarks.llama_cpp import (
    Speed,
    ThreadSetting,
    batched_bench,
    build,
    quantized,
    running_servers,
)
from benchmarks.random_models import SHAPES, random_model
from benchmarks.report import print_json, print_table
from benchmarks.runs import Runs
from coordinator.bench.decode import decode, decode_together, decode_tokens_per_s
from coordinator.bench.prompts import fixed_prompts
from stagecoach.client import AsyncClient
from stagecoach.model_files.open_model import demo_path

NUM_STAGES = 3
DEMO = "demo"
MODELS = (DEMO, "llama-160m", "llama-1b", "llama-1b-q4_0", "llama-1b-q8_0")
"""What is measured: the demo's file, and random models, in float16 unless the name says a type."""
SETTINGS = [
    ThreadSetting(num_threads=num_threads, passive=passive)
    for num_threads, passive in product((1, 2), (True, False))
]
CONTENDER_SHARE = 0.9
"""A thread setting whose first run reaches this share of the best at any batch size is measured in
full."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Something that is measured on both sides."""

    batch: int
    num_prompt_tokens: int
    num_tokens: int
    is_prefill: bool

    def __str__(self) -> str:
        """For a table."""
        if self.is_prefill:
            return f"prefill {self.num_prompt_tokens}"
        return f"decode, batch {self.batch}"

    def rate_of(self, speed: Speed) -> float:
        """The figure of llama.cpp that counts here."""
        return speed.prefill if self.is_prefill else speed.decode


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Both sides of one case."""

    model: str
    case: Case
    setting: ThreadSetting
    """The best of llama.cpp's."""
    peer: Runs
    stages: Runs

    @property
    def ratio(self) -> float:
        """How many times faster the stages are."""
        return self.stages.median / self.peer.median


class LlamaCpp:
    """Three RPC servers, started anew for each run.

    Args:
        programs: What `build` returned.
        model: A GGUF file.
    """

    def __init__(self, programs: Path, model: Path) -> None:
        self._programs = programs
        self._model = model

    def run(self, cases: Sequence[Case], setting: ThreadSetting) -> dict[Case, float]:
        """Measures every case once, in tokens a second."""
        rates: dict[Case, float] = {}
        with running_servers(self._programs, NUM_STAGES, setting) as servers:
            lengths = {(case.num_prompt_tokens, case.num_tokens) for case in cases}
            for num_prompt_tokens, num_tokens in sorted(lengths):
                group = [
                    case
                    for case in cases
                    if (case.num_prompt_tokens, case.num_tokens) == (num_prompt_tokens, num_tokens)
                ]
                speeds = batched_bench(
                    self._programs,
                    self._model,
                    servers,
                    setting,
                    batches=[case.batch for case in group],
                    num_prompt_tokens=num_prompt_tokens,
                    num_tokens=num_tokens,
                )
                rates |= {case: case.rate_of(speeds[case.batch]) for case in group}
        return rates


async def stages_run(client: AsyncClient, cases: Sequence[Case], run: int) -> dict[Case, float]:
    """Measures every case once on the stages, in tokens a second.

    Args:
        client: Of a running cluster.
        cases: What to measure.
        run: Number of the run; its prompts are its own, so that none was seen before.
    """
    rates = {}
    for case in cases:
        prompts = fixed_prompts(case.batch * (run + 1), case.num_prompt_tokens)[-case.batch :]
        if case.is_prefill:
            request = await decode(client, prompts[0], 1)
            ttft_ns = request.timings.time_to_first_token_ns
            assert ttft_ns is not None, "the request has a token"
            rates[case] = case.num_prompt_tokens / ttft_ns * 1e9
        else:
            rates[case] = decode_tokens_per_s(
                await decode_together(client, prompts, case.num_tokens)
            )
    return rates


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """One model, as each side opens it."""

    ours: str
    """What `--model` takes."""
    dtype: str
    """What `--dtype` takes."""
    gguf: Path

    @classmethod
    def of(cls, model: str, programs: Path) -> Self:
        """Finds or makes the files of a model of `MODELS`."""
        if model == DEMO:
            return cls(ours=DEMO, dtype="auto", gguf=demo_path())
        shape = next(shape for shape in SHAPES if model.startswith(shape))
        kind = model.removeprefix(shape).removeprefix("-")
        folder = random_model(shape)
        plain = export_gguf(folder)
        if not kind:
            return cls(ours=str(folder), dtype="float16", gguf=plain)
        gguf = quantized(programs, plain, kind.upper())
        return cls(ours=str(gguf), dtype="auto", gguf=gguf)


async def compare(model: str, options: argparse.Namespace) -> list[Comparison]:
    """Measures one model on both sides, taking turns; the first run of each warms up."""
    cases = [
        Case(
            batch=batch,
            num_prompt_tokens=options.prompt_tokens,
            num_tokens=options.output_tokens,
            is_prefill=False,
        )
        for batch in options.batch
    ]
    cases.append(
        Case(batch=1, num_prompt_tokens=options.prefill_tokens, num_tokens=1, is_prefill=True)
    )
    programs = build()
    files = Files.of(model, programs)
    peer = LlamaCpp(programs, files.gguf)
    flags = ["--threads", str(options.threads)] if options.threads else []
    with running_cluster(
        files.ours, num_stages=NUM_STAGES, dtype=files.dtype, flags=flags
    ) as address:
        async with AsyncClient(address) as client:
            await stages_run(client, cases, 0)
            contenders = _contenders(cases, {one: peer.run(cases, one) for one in SETTINGS})
            stages, peers = [], {setting: list[dict[Case, float]]() for setting in contenders}
            for run in range(1, options.repeats + 1):
                for setting, runs in peers.items():
                    runs.append(peer.run(cases, setting))
                stages.append(await stages_run(client, cases, run))
    return [_comparison(model, case, peers, stages) for case in cases]


def _contenders(
    cases: Sequence[Case], first_runs: dict[ThreadSetting, dict[Case, float]]
) -> list[ThreadSetting]:
    best = {case: max(rates[case] for rates in first_runs.values()) for case in cases}
    return [
        setting
        for setting, rates in first_runs.items()
        if any(rates[case] >= CONTENDER_SHARE * best[case] for case in cases)
    ]


def _comparison(
    model: str,
    case: Case,
    peers: dict[ThreadSetting, list[dict[Case, float]]],
    stages: Sequence[dict[Case, float]],
) -> Comparison:
    runs = {
        setting: Runs(rates=tuple(rates[case] for rates in measured))
        for setting, measured in peers.items()
    }
    setting = max(runs, key=lambda setting: runs[setting].median)
    return Comparison(
        model=model,
        case=case,
        setting=setting,
        peer=runs[setting],
        stages=Runs(rates=tuple(rates[case] for rates in stages)),
    )


def parse_options() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--threads", type=int, help="CPU threads a stage")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--prefill-tokens", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def main() -> None:
    """Prints the comparison."""
    options = parse_options()
    rows = [row for model in options.model for row in asyncio.run(compare(model, options))]
    if options.json:
        result = [
            {
                "model": row.model,
                "case": str(row.case),
                "llama_cpp_threads": str(row.setting),
                "llama_cpp": row.peer.rates,
                "stages": row.stages.rates,
                "ratio": row.ratio,
            }
            for row in rows
        ]
        print_json({"stages": NUM_STAGES, "rows": result})
        return
    print_table(
        f"Tokens a second, median and spread of {options.repeats} runs",
        ["model", "case", "llama.cpp, 3 RPC servers", "threads", "3 stages", "ratio"],
        [[row.model, row.case, row.peer, row.setting, row.stages, row.ratio] for row in rows],
    )


if __name__ == "__main__":
    main()
