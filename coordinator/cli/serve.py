"""`coordinator-cli serve`: the coordinator of a cluster whose stages run elsewhere."""

from typing import Annotated

import typer

from coordinator.cli.failures import reported_failures
from coordinator.config import CoordinatorConfig

_DEFAULT = CoordinatorConfig(model="demo", stages=("localhost:50051",))


def serve(
    model: Annotated[
        str,
        typer.Option(
            help="Local Hugging Face folder, hub id, path of a .gguf file, demo or shape:NAME."
        ),
    ],
    stage: Annotated[
        list[str],
        typer.Option(
            metavar="HOST:PORT[,...]",
            help="Address of a stage's server, or of several that stand for each other, with "
            "commas between; once for each stage, any order.",
        ),
    ],
    listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Address; port 0 takes a free one.")
    ] = _DEFAULT.listen,
    max_num_batched_tokens: Annotated[
        int | None, typer.Option(help="Most tokens in one micro-batch. Default: the stages'.")
    ] = None,
    max_num_seqs: Annotated[
        int | None, typer.Option(help="Most requests that run at once. Default: the stages'.")
    ] = None,
    max_model_len: Annotated[
        int | None, typer.Option(help="Most tokens of one request. Default: the stages'.")
    ] = None,
    num_micro_batches: Annotated[
        int | None,
        typer.Option(help="Micro-batches in flight. Default: measured while running."),
    ] = None,
    max_num_waiting: Annotated[
        int, typer.Option(help="Most requests that wait; more are refused.")
    ] = _DEFAULT.max_num_waiting,
    prefix_cache: Annotated[
        bool, typer.Option(help="Share the KV of a common prefix between requests.")
    ] = _DEFAULT.prefix_cache,
    connect_timeout_s: Annotated[
        float, typer.Option(help="Seconds to wait at start until every stage serves.")
    ] = _DEFAULT.connect_timeout_s,
    stage_wait_s: Annotated[
        float, typer.Option(help="Seconds that requests wait for a lost stage.")
    ] = _DEFAULT.stage_wait_s,
    drain_grace_s: Annotated[
        float, typer.Option(help="Seconds that running requests get after SIGTERM.")
    ] = _DEFAULT.drain_grace_s,
    json_output: Annotated[
        bool,
        typer.Option(
            "--json", envvar="STAGECOACH_JSON", help="Print one JSON line on stdout when ready."
        ),
    ] = False,
    exit_with_parent: Annotated[
        bool, typer.Option("--exit-with-parent", help="Stop when stdin reaches its end.")
    ] = False,
) -> None:
    """Serves a model whose layers are held by stage servers."""
    with reported_failures():
        config = CoordinatorConfig(
            model=model,
            stages=tuple(stage),
            listen=listen,
            max_num_batched_tokens=max_num_batched_tokens,
            max_num_seqs=max_num_seqs,
            max_model_len=max_model_len,
            num_micro_batches=num_micro_batches,
            max_num_waiting=max_num_waiting,
            prefix_cache=prefix_cache,
            connect_timeout_s=connect_timeout_s,
            stage_wait_s=stage_wait_s,
            drain_grace_s=drain_grace_s,
        )
        from coordinator.cli.coordinator_process import run

        run(config, json_output=json_output, exit_with_parent=exit_with_parent)
