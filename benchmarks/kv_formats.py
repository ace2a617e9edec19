"""Time of attention on the CPU by the format of KV, the context and the step.

One layer of each of three shapes. Sequences of a batch lie in each other's way, as those that grow
together do. The formats take turns. Prints medians in milliseconds, and how many times as long as
float32 each takes.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import NamedTuple

import torch

from benchmarks.report import print_json, print_table
from stage_server.core.batch import SequenceSlice
from stage_server.kv_cache.kv_pool import KvPool, NewKv
from stage_server.kv_cache.paged_attention import PagedAttention
from stage_server.kv_cache.slot_tables import SlotTables
from stage_server.kv_cache.step_indices import StepIndices
from stagecoach.contract.precision import KvFormat

_BLOCK_SIZE = 16


class Shape(NamedTuple):
    """Heads of a layer."""

    name: str
    num_heads: int
    num_kv_heads: int
    head_dim: int


class Case(NamedTuple):
    """A step."""

    name: str
    num_context_tokens: int
    num_sequences: int
    num_tokens: int
    """Tokens of each sequence."""


_SHAPES = (
    Shape("demo", 9, 3, 64),
    Shape("1.1 B", 32, 4, 64),
    Shape("13 B", 40, 40, 128),
)
_CASES = (
    Case("decode, batch 1, 512", 511, 1, 1),
    Case("decode, batch 1, 4096", 4095, 1, 1),
    Case("decode, batch 8, 1024", 1023, 8, 1),
    Case("chunk of 256 behind 256", 256, 1, 256),
    Case("chunk of 256 behind 3840", 3840, 1, 256),
)


def step_of(shape: Shape, case: Case, kv_format: KvFormat) -> Callable[[], object]:
    """Makes a pool that holds the context; returns what attends one layer of the step."""
    num_blocks = case.num_sequences * -(-(case.num_context_tokens + case.num_tokens) // _BLOCK_SIZE)
    pool = KvPool(
        num_layers=1,
        num_blocks=num_blocks,
        block_size=_BLOCK_SIZE,
        num_kv_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        kv_format=kv_format,
        device=torch.device("cpu"),
    )
    rows = num_blocks * _BLOCK_SIZE, shape.num_kv_heads, shape.head_dim
    pool.layer(0).store(torch.arange(rows[0]), NewKv(torch.randn(rows), torch.randn(rows)))
    tables = SlotTables(num_blocks, _BLOCK_SIZE)
    for start in range(0, case.num_context_tokens, _BLOCK_SIZE):
        count = min(_BLOCK_SIZE, case.num_context_tokens - start)
        tables.apply([], [SequenceSlice(i, start, count) for i in range(case.num_sequences)])
    slices = [
        SequenceSlice(i, case.num_context_tokens, case.num_tokens)
        for i in range(case.num_sequences)
    ]
    plan = tables.apply([], slices)
    indices = StepIndices.of(
        slices,
        plan,
        torch.empty(0),
        block_size=_BLOCK_SIZE,
        device=pool.device,
        max_gathered_tokens=pool.max_gathered_tokens,
    )
    num_rows = case.num_sequences * case.num_tokens
    query = torch.randn(num_rows, shape.num_heads, shape.head_dim)
    key, value = torch.randn(2, num_rows, shape.num_kv_heads, shape.head_dim)

    def attend() -> object:
        attention = PagedAttention(pool, slices, plan, indices)
        return attention.attend(
            0, query, key, value, scaling=0.1, sliding_window=None, softcap=None
        )

    return attend


def times_ms(shape: Shape, case: Case, repeats: int) -> dict[KvFormat, float]:
    """Medians by format."""
    steps = {kv_format: step_of(shape, case, kv_format) for kv_format in KvFormat}
    taken: dict[KvFormat, list[float]] = {kv_format: [] for kv_format in KvFormat}
    for _ in range(repeats):
        for kv_format, attend in steps.items():
            started = time.perf_counter()
            attend()
            taken[kv_format].append(1e3 * (time.perf_counter() - started))
    return {kv_format: median(times) for kv_format, times in taken.items()}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with torch.inference_mode():
        found = {
            (shape.name, case.name): times_ms(shape, case, options.repeats)
            for shape in _SHAPES
            for case in _CASES
        }
    if options.json:
        rows = [{"shape": shape, "step": step, "ms": ms} for (shape, step), ms in found.items()]
        print_json({"threads": options.threads, "rows": rows})
        return
    print_table(
        f"Attention of one layer by the format of KV, {options.threads} threads: ms (x float32)",
        ["shape", "step", *KvFormat],
        [
            [*names, *(f"{ms[each]:.2f} ({ms[each] / ms[KvFormat.FLOAT32]:.2f})" for each in ms)]
            for names, ms in found.items()
        ],
    )


if __name__ == "__main__":
    main()
