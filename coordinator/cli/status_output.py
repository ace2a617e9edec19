"""How the state of a cluster is shown: one JSON object, or a table for people."""

import json

from rich.console import Console

from coordinator.cli.shared.console import plain_table, table_console
from coordinator.cli.shared.model_title import model_title
from stagecoach.client import CoordinatorStatus, ModelState, ModelStatus
from stagecoach.contract.status_json import status_json

_STATES = {
    ModelState.SERVING: "ready",
    ModelState.LOADING: "not ready",
    ModelState.FAILED: "failed",
}


def print_json(status: CoordinatorStatus) -> None:
    """Prints the state as one JSON object."""
    print(json.dumps(status_json(status)))


def print_table(status: CoordinatorStatus) -> None:
    """Prints the state for people, one model after the other."""
    console = table_console()
    for model in status.models:
        _print_model(console, status, model)


def _print_model(console: Console, status: CoordinatorStatus, model: ModelStatus) -> None:
    state = _STATES[model.state]
    if model.emulated:
        state += ", emulated"
    console.print(f"{model_title(model)}: {state}, version {status.version}, pid {status.pid}")
    if model.problem:
        console.print(model.problem)
    table = plain_table()
    for name in ("stage", "address", "layers", "state", "dtype"):
        table.add_column(name, no_wrap=True)
    for name in ("bits", "weights", "KV", "KV in use"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("device")
    for stage in model.stages:
        table.add_row(
            str(stage.index),
            stage.address,
            "?" if stage.layers is None else "{}:{}".format(*stage.layers),
            stage.state,
            stage.dtype or "?",
            "?" if stage.bits_per_weight is None else f"{stage.bits_per_weight:.1f}",
            f"{stage.weight_bytes / 2**20:.0f} MiB",
            stage.kv_dtype or "?",
            _share(stage.num_used_kv_blocks, stage.num_kv_blocks),
            stage.device or "?",
        )
    console.print(table)
    console.print(
        f"{model.num_running} running, {model.num_waiting} waiting, "
        f"{model.num_finished} finished; {model.tokens_per_second:.1f} tokens/s, "
        f"{model.num_generated_tokens} tokens generated"
    )
    console.print(
        f"prefix cache: held {model.num_prefix_hit_tokens} of {model.num_prefix_query_tokens} "
        f"prompt tokens; now in {_share(model.num_cached_kv_blocks, model.num_kv_blocks)} of the "
        "KV blocks, free for any request"
    )
    console.print(
        f"guessed ahead: {model.num_accepted_draft_tokens} of {model.num_draft_tokens} tokens right"
    )


def _share(part: int, whole: int) -> str:
    return "?" if whole == 0 else f"{100 * part / whole:.0f} %"
