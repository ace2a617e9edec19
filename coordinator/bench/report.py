"""How a bench is shown: two tables for people, or one JSON object."""

import json
from dataclasses import asdict, fields

from rich import box
from rich.console import Console
from rich.table import Table

from coordinator.bench.result import BenchResult, BenchRow
from coordinator.bench.time_split import TimeSplit

PARTS = tuple(field.name for field in fields(TimeSplit))
"""Parts of the time of a token, in the order in which they are shown."""

_PIPE_WIDTH = 160
"""Columns of a table that does not go to a terminal; nothing is cut there."""


def title(result: BenchResult) -> str:
    """Names the cluster and the requests, and says when a stage is emulated."""
    status, plan = result.status, result.plan
    mark = "EMULATED: " if status.emulated else ""
    num_stages = len(status.pipeline_stages)
    stages = "1 stage" if num_stages == 1 else f"{num_stages} stages"
    prompts = "the same prompt of " if plan.same_prompt else ""
    return (
        f"{mark}{status.model_id}, {stages}, "
        f"{prompts}{plan.prompt_tokens} + {plan.output_tokens} tokens"
    )


def print_json(result: BenchResult) -> None:
    """Prints the result as one JSON object."""
    status, plan = result.status, result.plan
    print(
        json.dumps(
            {
                "emulated": status.emulated,
                "model": status.model_id,
                "prompt_tokens": plan.prompt_tokens,
                "output_tokens": plan.output_tokens,
                "repeats": plan.repeats,
                "same_prompt": plan.same_prompt,
                "stages": [
                    {
                        "index": stage.index,
                        "address": stage.address,
                        "layers": stage.layers,
                        "device": stage.device,
                        "dtype": stage.dtype,
                        "bits_per_weight": stage.bits_per_weight,
                        "kv_dtype": stage.kv_dtype,
                        "emulated": stage.emulated,
                    }
                    for stage in status.stages
                ],
                "rows": [_row_json(row) for row in result.rows],
            }
        )
    )


def _row_json(row: BenchRow) -> dict[str, object]:
    return {
        "batch": row.batch,
        "tokens_per_s": row.tokens_per_s,
        "tokens_per_s_min": row.tokens_per_s_min,
        "tokens_per_s_max": row.tokens_per_s_max,
        "limit_tokens_per_s": row.limit_tokens_per_s,
        "ttft_s": row.time_to_first_token_s,
        "prefill_tokens_per_s": row.prefill_tokens_per_s,
        "ms_per_step": asdict(row.split),
    }


def print_tables(result: BenchResult) -> None:
    """Prints the speed by batch size, and where the time of a token goes."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    console.print(f"{title(result)}; medians of {result.plan.repeats} runs")
    for stage in result.status.stages:
        layers = "?" if stage.layers is None else "{}:{}".format(*stage.layers)
        console.print(f"  stage {stage.index}: layers {layers} on {stage.device}, {stage.forms}")
    console.print(_speed_table(result))
    if result.no_limit_reason is not None:
        console.print(f"the limit is not known: {result.no_limit_reason}\n")
    console.print(_split_table(result))


def _speed_table(result: BenchResult) -> Table:
    table = _table("decode, tokens/s (prefill excluded)")
    first = result.rows[0]
    columns = ["batch", "median", "min", "max", f"x batch {first.batch}"]
    columns += [] if first.limit_tokens_per_s is None else ["limit", "of limit"]
    for name in (*columns, "first token, s", "prefill, tokens/s"):
        table.add_column(name, justify="right")
    for row in result.rows:
        cells = [f"{row.tokens_per_s:.1f}", f"{row.tokens_per_s_min:.1f}"]
        cells += [f"{row.tokens_per_s_max:.1f}", f"{row.tokens_per_s / first.tokens_per_s:.2f}"]
        if row.limit_tokens_per_s is not None:
            share = row.tokens_per_s / row.limit_tokens_per_s
            cells += [f"{row.limit_tokens_per_s:.1f}", f"{share:.1%}"]
        cells += [f"{row.time_to_first_token_s:.3f}", f"{row.prefill_tokens_per_s:.0f}"]
        table.add_row(str(row.batch), *cells)
    return table


def _split_table(result: BenchResult) -> Table:
    table = _table("ms from one token of a request to its next")
    for name in ("batch", *PARTS, "total"):
        table.add_column(name, justify="right")
    for row in result.rows:
        times = (*asdict(row.split).values(), row.split.total)
        table.add_row(str(row.batch), *(f"{ms:.2f}" for ms in times))
    return table


def _table(name: str) -> Table:
    return Table(title=name, box=box.SIMPLE, title_justify="left", pad_edge=False)
