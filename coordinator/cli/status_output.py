"""How the state of a cluster is shown: one JSON object, or a table for people."""

import json

from coordinator.cli.console import plain_table, table_console
from coordinator.client import CoordinatorStatus, StageStatus


def print_json(status: CoordinatorStatus) -> None:
    """Prints the state as one JSON object."""
    print(
        json.dumps(
            {
                "model": status.model_id,
                "ready": status.ready,
                "has_tokenizer": status.has_tokenizer,
                "version": status.version,
                "pid": status.pid,
                "stages": [_stage_json(stage) for stage in status.stages],
                "running": status.num_running,
                "waiting": status.num_waiting,
                "kv_blocks_total": status.num_kv_blocks,
                "kv_blocks_free": status.num_free_kv_blocks,
                "kv_blocks_cached": status.num_cached_kv_blocks,
                "max_model_len": status.max_model_len,
                "finished": status.num_finished,
                "generated_tokens": status.num_generated_tokens,
                "preemptions": status.num_preemptions,
                "prefix_query_tokens": status.num_prefix_query_tokens,
                "prefix_hit_tokens": status.num_prefix_hit_tokens,
                "tokens_per_s": status.tokens_per_second,
            }
        )
    )


def _stage_json(stage: StageStatus) -> dict[str, object]:
    return {
        "index": stage.index,
        "address": stage.address,
        "layers": stage.layers,
        "state": stage.state,
        "device": stage.device,
        "dtype": stage.dtype,
        "emulated": stage.emulated,
        "version": stage.version,
        "pid": stage.pid,
        "kv_block_size": stage.kv_block_size,
        "kv_blocks_total": stage.num_kv_blocks,
        "kv_blocks_free": stage.num_free_kv_blocks,
        "weight_bytes": stage.weight_bytes,
        "kv_bytes": stage.kv_bytes,
        "pipeline": stage.pipeline,
    }


def print_table(status: CoordinatorStatus) -> None:
    """Prints the state for people."""
    console = table_console()
    ready = "ready" if status.ready else "not ready"
    if any(stage.emulated for stage in status.stages):
        ready += ", emulated"
    console.print(f"{status.model_id}: {ready}, version {status.version}, pid {status.pid}")
    table = plain_table()
    for name in ("stage", "address", "layers", "state", "dtype"):
        table.add_column(name, no_wrap=True)
    for name in ("weights", "KV free"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("device")
    for stage in status.stages:
        table.add_row(
            str(stage.index),
            stage.address,
            "?" if stage.layers is None else "{}:{}".format(*stage.layers),
            stage.state,
            stage.dtype or "?",
            f"{stage.weight_bytes / 2**20:.0f} MiB",
            _share(stage.num_free_kv_blocks, stage.num_kv_blocks),
            stage.device or "?",
        )
    console.print(table)
    console.print(
        f"{status.num_running} running, {status.num_waiting} waiting, "
        f"{status.num_finished} finished; {status.tokens_per_second:.1f} tokens/s, "
        f"{status.num_generated_tokens} tokens generated"
    )
    console.print(
        f"prefix cache: held {status.num_prefix_hit_tokens} of {status.num_prefix_query_tokens} "
        f"prompt tokens; now in {_share(status.num_cached_kv_blocks, status.num_kv_blocks)} of the "
        "KV blocks, free for any request"
    )


def _share(part: int, whole: int) -> str:
    return "?" if whole == 0 else f"{100 * part / whole:.0f} %"
