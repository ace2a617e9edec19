"""`coordinator-cli up`: a whole cluster on this machine."""

import asyncio
from collections.abc import Mapping
from typing import Annotated

import typer

from coordinator.cli.shared.failures import reported_failures
from coordinator.cli.shared.flags import AllowedHost, CorsOrigin, ServedModelName
from coordinator.core.limits import MAX_STAGES
from stagecoach.contract.errors import InvalidArgumentError
from stagecoach.contract.layer_range import LayerRange
from stagecoach.contract.stage_choices import KV_DTYPE_NAMES, WEIGHTS_NAMES
from stagecoach.process import value_completion
from stagecoach.telemetry.log_config import LOG_FORMATS, LOG_LEVELS

DEFAULT_GRPC_PORT = 50050
DEFAULT_HTTP_PORT = 8000


def up(
    model: Annotated[
        str,
        typer.Option(
            autocompletion=value_completion.models,
            help="Local Hugging Face folder, hub id, path of a .gguf file, demo or shape:NAME.",
        ),
    ],
    stages: Annotated[
        int | None,
        typer.Option(min=1, max=MAX_STAGES, help="Stages to split the model over."),
    ] = None,
    layers: Annotated[
        list[str] | None,
        typer.Option(
            metavar="START:END", help="Layers of one stage, half-open; once for each stage."
        ),
    ] = None,
    replicas: Annotated[
        int, typer.Option(min=1, max=16, help="Servers of each stage; each makes a pipeline more.")
    ] = 1,
    grpc_port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port of the coordinator; 0 takes a free one.")
    ] = DEFAULT_GRPC_PORT,
    http_port: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65535,
            help="Port of the OpenAI-compatible HTTP API; 0 takes a free one. Default: "
            f"{DEFAULT_HTTP_PORT}, or a free one with --grpc-port 0.",
        ),
    ] = None,
    no_http: Annotated[bool, typer.Option("--no-http", help="Serve gRPC alone.")] = False,
    served_model_name: ServedModelName = None,
    allowed_host: AllowedHost = None,
    cors_origin: CorsOrigin = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            autocompletion=value_completion.dtypes,
            help="Of the arithmetic: auto, float32, float16 or bfloat16.",
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            autocompletion=value_completion.weights,
            help=f"Form of the matrices: {', '.join(WEIGHTS_NAMES)}.",
        ),
    ] = None,
    kv_dtype: Annotated[
        str | None,
        typer.Option(
            autocompletion=value_completion.kv_dtypes,
            help=f"How keys and values are kept: {', '.join(KV_DTYPE_NAMES)}.",
        ),
    ] = None,
    kv_memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="KV memory of each stage, such as 2GiB.")
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            min=1, help="CPU threads of each stage. Default: the physical cores; 1 if emulated."
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            autocompletion=value_completion.devices,
            metavar="NAME,...",
            help="auto, cpu, cuda or cuda:N; of several, such as cuda:0,cuda:1, stages take one "
            "each by turns. Stages on one card share its memory.",
        ),
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(
            autocompletion=value_completion.engines,
            help="torch, or emulated: waits instead of computing.",
        ),
    ] = None,
    emulate: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GPU",
            autocompletion=value_completion.gpus,
            help="For engine emulated: the GPU of all stages, such as rtx-3060-12gb, or once for "
            "each stage.",
        ),
    ] = None,
    efficiency: Annotated[
        float | None,
        typer.Option(help="For engine emulated: share of the GPU's figures it reaches."),
    ] = None,
    max_num_seqs: Annotated[
        int | None, typer.Option(min=1, help="Most requests that run at once.")
    ] = None,
    max_num_batched_tokens: Annotated[
        int | None, typer.Option(min=1, help="Most tokens in one micro-batch.")
    ] = None,
    max_model_len: Annotated[
        int | None, typer.Option(min=1, help="Most tokens of one request.")
    ] = None,
    num_micro_batches: Annotated[
        int | None,
        typer.Option(min=1, help="Micro-batches in flight. Default: measured while running."),
    ] = None,
    max_num_waiting: Annotated[
        int | None, typer.Option(min=1, help="Most requests that wait; more are refused.")
    ] = None,
    prefix_cache: Annotated[
        bool | None,
        typer.Option(
            "--prefix-cache/--no-prefix-cache",
            help="Share the KV of a common prefix between requests. Default: yes.",
        ),
    ] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65535 - MAX_STAGES,
            help="Serve the coordinator's metrics on this port and those of the stages on the ones "
            "after it; 0 takes free ones.",
        ),
    ] = None,
    otlp_endpoint: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Send traces to this OpenTelemetry collector."),
    ] = None,
    log_format: Annotated[
        str | None, typer.Option(help=f"Of all processes: {', '.join(LOG_FORMATS)}.")
    ] = None,
    log_level: Annotated[
        str | None, typer.Option(help=f"Of all processes: {', '.join(LOG_LEVELS)}.")
    ] = None,
    drain_grace_s: Annotated[
        float, typer.Option(min=0, help="Seconds that running requests get when it stops.")
    ] = 10.0,
    json_output: Annotated[
        bool, typer.Option("--json", help="Print one JSON line on stdout when ready.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show the logs of all processes.")
    ] = False,
    exit_with_parent: Annotated[
        bool, typer.Option("--exit-with-parent", help="Stop when stdin reaches its end.")
    ] = False,
) -> None:
    """Starts stage servers and a coordinator on this machine.

    They stop on Ctrl-C, on SIGTERM, or when the terminal closes.
    """
    stage_options = {
        "--dtype": dtype,
        "--weights": weights,
        "--kv-dtype": kv_dtype,
        "--kv-memory": kv_memory,
        "--threads": threads,
        "--engine": engine,
        "--efficiency": efficiency,
        "--max-num-seqs": max_num_seqs,
        "--max-num-batched-tokens": max_num_batched_tokens,
        "--max-model-len": max_model_len,
    }
    log_options = {"--log-format": log_format, "--log-level": log_level}
    with reported_failures(up):
        from coordinator.cli.cluster.cluster import ClusterPlan
        from coordinator.cli.cluster.cluster_run import run_cluster
        from coordinator.cli.cluster.device_turns import DeviceTurns

        ranges = tuple(_layer_ranges(model, stages, layers))
        plan = ClusterPlan(
            model=model,
            layers=ranges,
            num_replicas=replicas,
            devices=DeviceTurns.parse(
                device, 1 if engine == "emulated" else len(ranges) * replicas
            ),
            emulated_gpus=_gpu_of_each_stage(emulate or [], len(ranges)),
            grpc_port=grpc_port,
            http_port=_http_port(http_port, grpc_port, no_http=no_http),
            stage_options=(*_given(stage_options), *_given(log_options)),
            metrics_port=metrics_port,
            coordinator_options=(
                *_given(
                    {
                        "--num-micro-batches": num_micro_batches,
                        "--max-num-waiting": max_num_waiting,
                        "--otlp-endpoint": otlp_endpoint,
                        **log_options,
                    }
                ),
                *_each("--served-model-name", served_model_name),
                *_each("--allowed-host", allowed_host),
                *_each("--cors-origin", cors_origin),
                *_switch("--prefix-cache", "--no-prefix-cache", prefix_cache),
            ),
            drain_grace_s=drain_grace_s,
        )
        asyncio.run(
            run_cluster(
                plan, json_output=json_output, verbose=verbose, with_parent=exit_with_parent
            )
        )


def _http_port(http_port: int | None, grpc_port: int, *, no_http: bool) -> int | None:
    """The port of the HTTP API; None for none.

    Raises:
        InvalidArgumentError: A port is given, and none is wanted.
    """
    if no_http:
        if http_port is not None:
            raise InvalidArgumentError("give either --http-port or --no-http", field="http_port")
        return None
    if http_port is not None:
        return http_port
    return DEFAULT_HTTP_PORT if grpc_port else 0


def _layer_ranges(model: str, stages: int | None, layers: list[str] | None) -> list[LayerRange]:
    """The layers of each stage, in order.

    Raises:
        InvalidArgumentError: They do not cover the model from its first layer to its last.
        ModelFilesError: The model cannot be opened.
        UnsupportedModelError: `stages` is given, and the cost of the layers is not known.
    """
    from stagecoach.model_files import open_model
    from stagecoach.roofline.layer_split import split_layers

    if (stages is None) == (not layers):
        raise InvalidArgumentError("give either --stages or --layers", field="stages")
    config = open_model(model).config
    if stages is not None:
        return split_layers(config, stages, field="stages")
    num_layers = config.num_layers
    ranges = [LayerRange.parse(text) for text in layers or ()]
    if len(ranges) > MAX_STAGES:
        raise InvalidArgumentError(
            f"layers is given {len(ranges)} times, at most {MAX_STAGES} times is allowed",
            field="layers",
        )
    starts = [0, *(piece.end for piece in ranges)]
    if [piece.start for piece in ranges] != starts[:-1] or starts[-1] != num_layers:
        raise InvalidArgumentError(
            f"layers {', '.join(map(str, ranges))} do not cover the model's 0:{num_layers}"
            " in order, without gap or overlap",
            field="layers",
        )
    return ranges


def _gpu_of_each_stage(gpus: list[str], num_stages: int) -> tuple[str, ...]:
    """The emulated GPU of each stage, in order; empty when none is named.

    Raises:
        InvalidArgumentError: Neither one GPU nor one for each stage is named.
    """
    if len(gpus) not in (0, 1, num_stages):
        raise InvalidArgumentError(
            f"{len(gpus)} GPUs to emulate given, must be 1 or one for each of {num_stages} stages",
            field="emulate",
        )
    return tuple(gpus * num_stages if len(gpus) == 1 else gpus)


def _switch(on: str, off: str, value: bool | None) -> tuple[str, ...]:
    """The one of two flags that was given, if any."""
    return () if value is None else (on,) if value else (off,)


def _each(option: str, values: list[str] | None) -> tuple[str, ...]:
    """An option that was given any number of times, as arguments of a command."""
    return tuple(text for value in values or () for text in (option, value))


def _given(options: Mapping[str, object]) -> tuple[str, ...]:
    """The options that were given, as arguments of a command."""
    return tuple(
        text for name, value in options.items() if value is not None for text in (name, str(value))
    )
