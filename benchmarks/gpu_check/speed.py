"""The check of speed: decoding of a model of 1.1 B beside the card's own bandwidth.

A stage in this process shows what the card and its kernels do; the same model behind a coordinator,
as a client sees it, shows what the processes around it add.
"""

import asyncio
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.gpu_check.bandwidth import read_bytes_per_s
from benchmarks.gpu_check.decode_times import DecodeTime, decode_time
from benchmarks.gpu_check.local_cluster import cluster_on
from benchmarks.gpu_check.models import large_model
from benchmarks.gpu_check.report import Figure, Limit
from benchmarks.gpu_check.stage_runs import load_engine, release
from benchmarks.gpu_check.subject import Subject
from coordinator.bench.result import BenchPlan
from coordinator.bench.sweep import sweep
from stagecoach.client import AsyncClient
from stagecoach.contract.precision import DType
from stagecoach.model_files import open_model

_LEAST_SHARE = {1: 0.6, 8: 0.55, 32: 0.5, 96: 0.35}
"""Least share of the roofline by batch. Products of a matrix with one row read at 80 to 90 % of the
bandwidth; with 96 rows a 3060 computes for about as long as it reads, one after the other."""

_LAUNCHES_S_PER_LAYER = 200e-6
_LAUNCHES_S_PER_STEP = 1.5e-3
"""What the host may take to launch a step: fast cards wait for it, and no limit asks for less. A
layer has nine launches, of 5 to 20 us each by the host's speed."""

_MOST_OUTSIDE_MS = 4.0
_MOST_OUTSIDE_MS_A_REQUEST = 0.1
"""What a coordinator, its link to the stage and a client may add to a step, on one machine."""

_DTYPE = DType.FLOAT16


class _Sizes(NamedTuple):
    """How much is measured."""

    batches: tuple[int, ...]
    num_prompt_tokens: int
    num_output_tokens: int
    num_repeats: int
    num_bandwidth_bytes: int


_SIZES = _Sizes(tuple(_LEAST_SHARE), 128, 64, 2, 1 << 29)
_QUICK_SIZES = _Sizes((1, 8), 16, 8, 1, 1 << 24)


def names(subject: Subject) -> Sequence[str]:
    """Names the rows."""
    batches = _sizes(subject).batches
    return [*(_stage_name(batch) for batch in batches), *(_client_name(batch) for batch in batches)]


def figures(subject: Subject) -> Iterator[Figure]:
    """Measures the stage alone, then the cluster."""
    sizes = _sizes(subject)
    path = large_model(subject)
    bandwidth = read_bytes_per_s(subject.device, sizes.num_bandwidth_bytes)
    release(subject.device)
    stage_times = _stage_times(subject, path, sizes)
    num_layers = open_model(str(path)).config.num_layers
    for batch, time in stage_times.items():
        yield _stage_figure(batch, time, bandwidth, num_layers)
    release(subject.device)
    with cluster_on(subject, str(path), num_stages=1, dtype=_DTYPE) as address:
        rates = asyncio.run(_rates(address, sizes))
    for batch, tokens_per_s in rates.items():
        yield _client_figure(batch, tokens_per_s, stage_times[batch])


def _stage_times(subject: Subject, path: Path, sizes: _Sizes) -> dict[int, DecodeTime]:
    engine = load_engine(subject, path, _DTYPE, kv_memory_bytes=None)
    config = open_model(str(path)).config
    return {
        batch: decode_time(
            engine,
            config,
            _DTYPE,
            batch,
            context=sizes.num_prompt_tokens,
            num_steps=sizes.num_output_tokens,
        )
        for batch in sizes.batches
    }


def _stage_figure(batch: int, time: DecodeTime, bandwidth: float, num_layers: int) -> Figure:
    roofline_s = time.moved_bytes / bandwidth
    launches_s = num_layers * _LAUNCHES_S_PER_LAYER + _LAUNCHES_S_PER_STEP
    slowest_s = max(roofline_s / _LEAST_SHARE[batch], launches_s)
    bound = "launches" if slowest_s == launches_s else "bandwidth"
    note = (
        f"{1e3 * time.step_s:.2f} ms a step, {batch / time.step_s:.0f} tokens/s; "
        f"{time.moved_bytes / 1e9:.2f} GB at {bandwidth / 1e9:.0f} GB/s are "
        f"{1e3 * roofline_s:.2f} ms; the limit is of {bound}"
    )
    limit = Limit(least=roofline_s / slowest_s)
    share = roofline_s / time.step_s
    return Figure(_stage_name(batch), share, "of the roofline", limit, note, is_of_cards=True)


def _client_figure(batch: int, tokens_per_s: float, time: DecodeTime) -> Figure:
    step_s = batch / tokens_per_s
    return Figure(
        _client_name(batch),
        1e3 * (step_s - time.step_s),
        "ms",
        Limit(most=_MOST_OUTSIDE_MS + batch * _MOST_OUTSIDE_MS_A_REQUEST),
        note=f"{1e3 * step_s:.2f} ms a step, {tokens_per_s:.0f} tokens/s",
        is_of_cards=True,
    )


async def _rates(address: str, sizes: _Sizes) -> dict[int, float]:
    """Decoded tokens a second, by batch."""
    plan = BenchPlan(
        batches=sizes.batches,
        prompt_tokens=sizes.num_prompt_tokens,
        output_tokens=sizes.num_output_tokens,
        repeats=sizes.num_repeats,
    )
    result = await sweep(lambda: AsyncClient(address), plan, _log)
    return {row.batch: row.tokens_per_s for row in result.rows}


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _sizes(subject: Subject) -> _Sizes:
    return _QUICK_SIZES if subject.is_quick else _SIZES


def _stage_name(batch: int) -> str:
    return f"a stage, batch {batch}"


def _client_name(batch: int) -> str:
    return f"outside the stage, batch {batch}"
