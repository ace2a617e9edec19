"""How a plan is shown: one JSON object, or tables for people."""

import json
from collections.abc import Callable, Sequence

from rich.console import Console

from coordinator.cli.shared.console import plain_table, table_console
from coordinator.planner.plan import StagePlan
from coordinator.planner.prediction import Prediction, Speed
from coordinator.planner.report import PlanReport
from coordinator.planner.what_if import FACTORS, WhatIf
from stagecoach.roofline.model_shape import ModelShape
from stagecoach.roofline.step_time import step_time
from stagecoach.roofline.torch_builds import OLDER_BUILD, PINNED_TORCH
from stagecoach.roofline.work import Work

_MARK = " (*)"
"""Mark of a GPU that the pinned build of torch has no kernels for."""


def print_json(report: PlanReport) -> None:
    """Prints a plan as one JSON object."""
    plan, conditions = report.plan, report.conditions
    print(
        json.dumps(
            {
                "model": report.model_id,
                "num_parameters": plan.model.num_parameters,
                "weight_bytes": plan.model.weight_bytes,
                "dtype": plan.model.precision.compute,
                "weights": plan.model.precision.weights.name,
                "bits_per_weight": round(plan.model.bits_per_weight, 3),
                "kv_dtype": plan.model.precision.kv,
                "dtype_is_auto": report.is_automatic_dtype,
                "torch": PINNED_TORCH.version,
                "network": conditions.network.name,
                "efficiency": conditions.efficiency,
                "overhead_ms": conditions.overhead_s * 1e3,
                "context_tokens": conditions.context_tokens,
                "reordered": plan.is_reordered,
                "kv_tokens": plan.kv_tokens,
                "max_model_len": report.max_model_len,
                "ttft_ms": report.time_to_first_token_s * 1e3,
                "stages": [_stage_json(index, report) for index in range(len(plan.stages))],
                "rows": [_row_json(prediction) for prediction in report.predictions],
                "what_if": [
                    {
                        "batch": answer.batch_size,
                        "bandwidth": answer.bandwidth,
                        "compute": answer.compute,
                        "tokens_per_s": answer.tokens_per_s,
                        "ttft_ms": answer.time_to_first_token_s * 1e3,
                    }
                    for answer in report.what_ifs
                ],
            }
        )
    )


def _stage_json(index: int, report: PlanReport) -> dict[str, object]:
    stage = report.plan.stages[index]
    layers = stage.cost.layers
    return {
        "index": index,
        "gpu": stage.gpu.name,
        "gpu_index": stage.gpu_index,
        "capability": str(stage.gpu.capability),
        "runs_pinned_torch": stage.gpu.runs_pinned_torch,
        "layers": [layers.start, layers.end],
        "memory_bytes": stage.gpu.memory_bytes,
        "weight_bytes": stage.cost.weight_bytes,
        "kv_bytes": stage.kv_bytes,
        "kv_tokens": stage.kv_tokens,
        "step_ms": _step_ms(stage, report),
    }


def _row_json(prediction: Prediction) -> dict[str, object]:
    return {
        "batch": prediction.batch_size,
        "running": prediction.num_running,
        "one_micro_batch": _speed_json(prediction.one_micro_batch),
        "pipelined": _speed_json(prediction.pipelined),
    }


def _speed_json(speed: Speed) -> dict[str, object]:
    return {
        "tokens_per_s": speed.tokens_per_s,
        "step_ms": speed.step_s * 1e3,
        "micro_batches": speed.num_micro_batches,
        "limit": speed.limit.value,
    }


def print_tables(report: PlanReport) -> None:
    """Prints a plan for people."""
    console = table_console()
    plan, conditions = report.plan, report.conditions
    console.print(
        f"{report.model_id}: {plan.model.num_parameters / 1e9:.2f} B parameters, "
        f"{plan.model.weight_bytes / 1e9:.2f} GB in {_form(plan.model)}, "
        f"{plan.model.kv_bytes_per_token / 1e3:.0f} kB of KV a token in "
        f"{plan.model.precision.kv}"
    )
    console.print(
        f"{conditions.network.name}, GPUs at {conditions.efficiency:.0%} of their figures, "
        f"{conditions.overhead_s * 1e3:g} ms of software a step, sequences of "
        f"{conditions.context_tokens} tokens"
    )
    _print_stages(console, report)
    _print_warnings(console, report)
    if plan.is_reordered:
        console.print("The GPUs stand in another order than given: it makes the plan better.")
    console.print(
        f"KV for {plan.kv_tokens} tokens on the smallest stage; sequences of at most "
        f"{report.max_model_len} tokens"
    )
    console.print(
        f"A prompt of {conditions.context_tokens} tokens takes "
        f"{report.time_to_first_token_s:.2f} s to its first token"
    )
    _print_speeds(console, report)
    _print_what_ifs(console, report)


def _form(model: ModelShape) -> str:
    precision = model.precision
    if not model.is_in_few_bits:
        return precision.weights.name
    bits = f"{precision.weights.name}, {model.bits_per_weight:.1f} bits a weight"
    return f"{bits}, computed in {precision.compute}"


def _print_stages(console: Console, report: PlanReport) -> None:
    table = plain_table()
    for name in ("stage", "GPU", "layers"):
        table.add_column(name, no_wrap=True)
    for name in ("capability", "weights", "KV", "of", "KV tokens", "ms at batch 1"):
        table.add_column(name, justify="right", no_wrap=True)
    for index, stage in enumerate(report.plan.stages):
        table.add_row(
            str(index),
            stage.gpu.name,
            str(stage.cost.layers),
            f"{stage.gpu.capability}{'' if stage.gpu.runs_pinned_torch else _MARK}",
            _gib(stage.cost.weight_bytes),
            _gib(stage.kv_bytes),
            _gib(stage.gpu.memory_bytes),
            str(stage.kv_tokens),
            f"{_step_ms(stage, report):.1f}",
        )
    console.print(table)


def _print_warnings(console: Console, report: PlanReport) -> None:
    """Says what must be done before the plan's GPUs compute."""
    gpus = [stage.gpu for stage in report.plan.stages]
    if not all(gpu.runs_pinned_torch for gpu in gpus):
        console.print(
            f"{_MARK.strip()} torch {PINNED_TORCH.version} as pip installs it has no kernels for "
            f"this card: install {OLDER_BUILD} on its box"
        )
    if not report.is_automatic_dtype:
        console.print(
            f"Give --dtype {report.plan.model.precision.compute} to every stage: not every GPU has "
            "that of the checkpoint, bfloat16"
        )


def _print_speeds(console: Console, report: PlanReport) -> None:
    table = plain_table()
    table.add_column("batch", justify="right")
    table.add_column("running", justify="right")
    table.add_column("tokens/s, one micro-batch", justify="right")
    table.add_column("limit", no_wrap=True)
    table.add_column("tokens/s, pipelined", justify="right")
    table.add_column("micro-batches", justify="right")
    table.add_column("limit", no_wrap=True)
    for prediction in report.predictions:
        one, many = prediction.one_micro_batch, prediction.pipelined
        table.add_row(
            str(prediction.batch_size),
            str(prediction.num_running),
            f"{one.tokens_per_s:.1f}",
            one.limit.value,
            f"{many.tokens_per_s:.1f}",
            str(many.num_micro_batches),
            many.limit.value,
        )
    console.print(table)


def _print_what_ifs(console: Console, report: PlanReport) -> None:
    """One table a batch size, and one for prompts, whose time is the same at all of them."""
    answers: list[WhatIf] = []
    for batch_size in dict.fromkeys(answer.batch_size for answer in report.what_ifs):
        answers = [answer for answer in report.what_ifs if answer.batch_size == batch_size]
        console.print(f"tokens/s at batch {batch_size}, pipelined, if the GPUs had")
        _print_grid(console, answers, lambda answer: f"{answer.tokens_per_s:.1f}")
    if answers:
        console.print("seconds to the first token, if the GPUs had")
        _print_grid(console, answers, lambda answer: f"{answer.time_to_first_token_s:.2f}")


def _print_grid(console: Console, answers: Sequence[WhatIf], cell: Callable[[WhatIf], str]) -> None:
    """Bandwidth down, arithmetic across."""
    table = plain_table()
    table.add_column("")
    for factor in FACTORS:
        table.add_column(f"{factor:g} x FLOP/s", justify="right")
    for factor in FACTORS:
        row = [answer for answer in answers if answer.bandwidth == factor]
        table.add_row(f"{factor:g} x bandwidth", *map(cell, row))
    console.print(table)


def _step_ms(stage: StagePlan, report: PlanReport) -> float:
    """Time of the stage for one sequence."""
    conditions = report.conditions
    work = Work.decode(1, conditions.context_tokens)
    return step_time(stage.cost, work, stage.gpu, efficiency=conditions.efficiency).total_s * 1e3


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB"
