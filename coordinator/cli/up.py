"""`coordinator-cli up`: a whole cluster on this machine."""

import asyncio
from typing import Annotated

import typer

from coordinator.cli.shared.arguments import each, given, switch
from coordinator.cli.shared.failures import reported_failures
from coordinator.cli.shared.flags import AllowedHost, CorsOrigin
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
        list[str],
        typer.Option(
            autocompletion=value_completion.models,
            help="Local Hugging Face folder, hub id, path of a .gguf file, demo or shape:NAME; "
            "once for each model.",
        ),
    ],
    stages: Annotated[
        int | None,
        typer.Option(min=1, max=MAX_STAGES, help="Stages to split each model over."),
    ] = None,
    layers: Annotated[
        list[str] | None,
        typer.Option(
            metavar="START:END",
            help="Layers of one stage, half-open; once for each stage of the only model.",
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
    served_model_name: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[,...]",
            help="Name of the model instead of its own, or several with commas between; "
            "repeatable, and of several models once for each, in order. Answers show the first.",
        ),
    ] = None,
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
            min=1,
            help="CPU threads of each stage; several models share the default. "
            "Default: the physical cores; 1 if emulated.",
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
    max_thinking_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens after which thinking is ended. Default: no limit."),
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
    prompt_lookup: Annotated[
        bool | None,
        typer.Option(
            "--prompt-lookup/--no-prompt-lookup",
            help="Guess tokens that repeat the prompt or the output. Default: yes.",
        ),
    ] = None,
    draft_acceptance: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="For emulated stages: share of guessed tokens that are right."
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
        "--threads": _threads(threads, len(model), engine),
        "--engine": engine,
        "--efficiency": efficiency,
        "--max-num-seqs": max_num_seqs,
        "--max-num-batched-tokens": max_num_batched_tokens,
        "--max-model-len": max_model_len,
    }
    log_options = {"--log-format": log_format, "--log-level": log_level}
    with reported_failures(up):
        from coordinator.cli.cluster.cluster import ClusterPlan, ModelPlan
        from coordinator.cli.cluster.cluster_run import run_cluster
        from coordinator.cli.cluster.device_turns import DeviceTurns

        names = _names_of_each(served_model_name or [], len(model))
        models = []
        for one, own_names in zip(model, names, strict=True):
            ranges = tuple(_layer_ranges(one, stages, layers, is_only=len(model) == 1))
            models.append(
                ModelPlan(
                    model=one,
                    names=own_names,
                    layers=ranges,
                    num_replicas=replicas,
                    emulated_gpus=_gpu_of_each_stage(emulate or [], len(ranges)),
                )
            )
        num_servers = sum(one.num_servers for one in models)
        plan = ClusterPlan(
            models=tuple(models),
            devices=DeviceTurns.parse(device, 1 if engine == "emulated" else num_servers),
            grpc_port=grpc_port,
            http_port=_http_port(http_port, grpc_port, no_http=no_http),
            stage_options=(*given(stage_options), *given(log_options)),
            metrics_port=metrics_port,
            coordinator_options=(
                *given(
                    {
                        "--num-micro-batches": num_micro_batches,
                        "--max-thinking-tokens": max_thinking_tokens,
                        "--draft-acceptance": draft_acceptance,
                        "--max-num-waiting": max_num_waiting,
                        "--otlp-endpoint": otlp_endpoint,
                        **log_options,
                    }
                ),
                *each("--allowed-host", allowed_host),
                *each("--cors-origin", cors_origin),
                *switch("--prefix-cache", "--no-prefix-cache", prefix_cache),
                *switch("--prompt-lookup", "--no-prompt-lookup", prompt_lookup),
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


def _threads(threads: int | None, num_models: int, engine: str | None) -> int | None:
    """Threads of each stage; None for what a stage takes by itself.

    One stage of a model computes at a time, so models share the cores, and stages do not.
    """
    if threads is not None or num_models == 1 or engine == "emulated":
        return threads

    from stagecoach.process.cores import num_cores

    return max(1, num_cores() // num_models)


def _names_of_each(texts: list[str], num_models: int) -> list[tuple[str, ...]]:
    """What requests call each model; empty for its own name.

    Raises:
        InvalidArgumentError: Several models have another number of names.
    """
    of_each = [tuple(name.strip() for name in text.split(",")) for text in texts]
    if num_models == 1:
        return [tuple(name for names in of_each for name in names)]
    if of_each and len(of_each) != num_models:
        raise InvalidArgumentError(
            f"served_model_name is given {len(of_each)} times, must be once for each of "
            f"{num_models} models",
            field="served_model_name",
        )
    return of_each or [()] * num_models


def _layer_ranges(
    model: str, stages: int | None, layers: list[str] | None, *, is_only: bool
) -> list[LayerRange]:
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
    if layers and not is_only:
        raise InvalidArgumentError(
            "layers are of one model: give --stages for several", field="layers"
        )
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
