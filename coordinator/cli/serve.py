"""`coordinator-cli serve`: the coordinator of clusters whose stages run elsewhere."""

import os
from pathlib import Path
from typing import Annotated

import typer

from coordinator.cli.shared.failures import reported_failures
from coordinator.cli.shared.flags import AllowedHost, CorsOrigin, ServedModelName
from coordinator.config import ClusterConfig, CoordinatorConfig, parse_stages
from stagecoach.process import value_completion
from stagecoach.process.lasting_objects import lasting_objects
from stagecoach.telemetry.log_config import LOG_FORMATS, LOG_LEVELS, LogConfig

_DEFAULT_CLUSTER = ClusterConfig(model="demo", stages=parse_stages(["localhost:50051"]))
_DEFAULT = CoordinatorConfig(clusters=(_DEFAULT_CLUSTER,))
_DEFAULT_LOG = LogConfig()


def serve(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Option(
            autocompletion=value_completion.models,
            help="Local Hugging Face folder, hub id, path of a .gguf file, demo or shape:NAME.",
        ),
    ] = None,
    stage: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST:PORT[,...]",
            help="Address of a stage's server, or of several that stand for each other, with "
            "commas between; once for each stage, any order.",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="YAML file of several models, each with its stages, instead of --model and "
            "--stage.",
        ),
    ] = None,
    listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Address; port 0 takes a free one.")
    ] = str(_DEFAULT.listen),
    http_listen: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Address of the OpenAI-compatible HTTP API; port 0 takes a free one. Default: "
            f"{_DEFAULT.http_listen}, or a free port when that of --listen is 0.",
        ),
    ] = None,
    no_http: Annotated[bool, typer.Option("--no-http", help="Serve gRPC alone.")] = False,
    served_model_name: ServedModelName = None,
    allowed_host: AllowedHost = None,
    cors_origin: CorsOrigin = None,
    tls_ca: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="CA whose certificate the stages have to show."),
    ] = None,
    tls_cert: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Certificate that this coordinator shows to stages."),
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Private key of --tls-cert.")
    ] = None,
    door_tls_cert: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Certificate shown to clients, over gRPC and HTTPS."),
    ] = None,
    door_tls_key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Private key of --door-tls-cert.")
    ] = None,
    api_keys_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="API keys of clients, which `coordinator-cli keys new` makes. They may also stand "
            "in the environment as STAGECOACH_API_KEYS.",
        ),
    ] = None,
    max_requests_per_key: Annotated[
        int | None, typer.Option(help="Most requests at once with one API key. Default: no limit.")
    ] = None,
    insecure_bind: Annotated[
        bool,
        typer.Option(
            "--insecure-bind",
            help="Let other machines reach it without TLS or API keys: anyone may use it.",
        ),
    ] = False,
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
    max_thinking_tokens: Annotated[
        int | None, typer.Option(help="Tokens after which thinking is ended. Default: no limit.")
    ] = None,
    max_num_waiting: Annotated[
        int, typer.Option(help="Most requests that wait; more are refused.")
    ] = _DEFAULT_CLUSTER.max_num_waiting,
    prefix_cache: Annotated[
        bool, typer.Option(help="Share the KV of a common prefix between requests.")
    ] = _DEFAULT_CLUSTER.prefix_cache,
    prompt_lookup: Annotated[
        bool, typer.Option(help="Guess tokens that repeat the prompt or the output, where it pays.")
    ] = _DEFAULT_CLUSTER.prompt_lookup,
    draft_acceptance: Annotated[
        float | None,
        typer.Option(help="For emulated stages: share of guessed tokens that are right."),
    ] = None,
    connect_timeout_s: Annotated[
        float, typer.Option(help="Seconds to wait at start until every stage serves.")
    ] = _DEFAULT_CLUSTER.connect_timeout_s,
    stage_wait_s: Annotated[
        float, typer.Option(help="Seconds that requests wait for a lost stage.")
    ] = _DEFAULT_CLUSTER.stage_wait_s,
    drain_grace_s: Annotated[
        float, typer.Option(help="Seconds that running requests get after SIGTERM.")
    ] = _DEFAULT.drain_grace_s,
    metrics_listen: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT", help="Serve metrics to Prometheus; port 0 takes a free one."
        ),
    ] = None,
    otlp_endpoint: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Send traces to this OpenTelemetry collector."),
    ] = None,
    log_format: Annotated[
        str, typer.Option(help=f"One of {', '.join(LOG_FORMATS)}.")
    ] = _DEFAULT_LOG.format,
    log_level: Annotated[
        str, typer.Option(help=f"One of {', '.join(LOG_LEVELS)}.")
    ] = _DEFAULT_LOG.level,
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
    """Serves models whose layers are held by stage servers."""
    flags = dict(locals())  # every parameter by its name, before there is anything else
    with reported_failures(serve):
        from coordinator.cli.serve_options import ServeOptions

        given = [name for name in flags if _is_given(context, name)]
        options = ServeOptions(serve, flags, given)
        coordinator = options.coordinator(api_keys=os.environ.get("STAGECOACH_API_KEYS"))
        of_all = options.of_all
        log = LogConfig(format=of_all["log_format"], level=of_all["log_level"])
        with lasting_objects():
            from coordinator.process import run

        run(coordinator, log=log, json_output=json_output, exit_with_parent=exit_with_parent)


def _is_given(context: typer.Context, parameter: str) -> bool:
    """True for what does not just have its default."""
    source = context.get_parameter_source(parameter)
    return source is not None and source.name in ("COMMANDLINE", "ENVIRONMENT")
