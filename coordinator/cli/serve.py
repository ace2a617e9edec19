"""`coordinator-cli serve`: the coordinator of a cluster whose stages run elsewhere."""

import os
from pathlib import Path
from typing import Annotated

import typer

from coordinator.cli.shared.failures import reported_failures
from coordinator.cli.shared.flags import AllowedHost, CorsOrigin, ServedModelName
from coordinator.config import CoordinatorConfig, parse_stages
from stagecoach.contract.address import Address
from stagecoach.contract.errors import InvalidArgumentError
from stagecoach.process import value_completion
from stagecoach.process.lasting_objects import lasting_objects
from stagecoach.security.tls_files import TlsFiles
from stagecoach.telemetry.log_config import LOG_FORMATS, LOG_LEVELS, LogConfig

_DEFAULT = CoordinatorConfig(model="demo", stages=parse_stages(["localhost:50051"]))
_DEFAULT_LOG = LogConfig()


def serve(
    model: Annotated[
        str,
        typer.Option(
            autocompletion=value_completion.models,
            help="Local Hugging Face folder, hub id, path of a .gguf file, demo or shape:NAME.",
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
    """Serves a model whose layers are held by stage servers."""
    with reported_failures(serve):
        address = Address.parse(listen, field="listen")
        config = CoordinatorConfig(
            model=model,
            stages=parse_stages(stage),
            listen=address,
            http_listen=_http_listen(http_listen, address, no_http=no_http),
            served_model_names=_split(served_model_name),
            allowed_hosts=tuple(allowed_host or ()),
            cors_origins=tuple(cors_origin or ()),
            stage_tls=TlsFiles.mutual(tls_ca, tls_cert, tls_key),
            door_tls=TlsFiles.of_server(door_tls_cert, door_tls_key, prefix="door_tls"),
            api_keys_file=api_keys_file,
            api_keys=os.environ.get("STAGECOACH_API_KEYS"),
            max_requests_per_key=max_requests_per_key,
            insecure_bind=insecure_bind,
            max_num_batched_tokens=max_num_batched_tokens,
            max_num_seqs=max_num_seqs,
            max_model_len=max_model_len,
            num_micro_batches=num_micro_batches,
            max_num_waiting=max_num_waiting,
            prefix_cache=prefix_cache,
            connect_timeout_s=connect_timeout_s,
            stage_wait_s=stage_wait_s,
            drain_grace_s=drain_grace_s,
            metrics_listen=None
            if metrics_listen is None
            else Address.parse(metrics_listen, field="metrics_listen"),
            otlp_endpoint=otlp_endpoint,
        )
        log = LogConfig(format=log_format, level=log_level)
        with lasting_objects():
            from coordinator.process import run

        run(config, log=log, json_output=json_output, exit_with_parent=exit_with_parent)


def _split(names: list[str] | None) -> tuple[str, ...]:
    """Names that were given one by one, or with commas between."""
    return tuple(name.strip() for given in names or () for name in given.split(","))


def _http_listen(http_listen: str | None, listen: Address, *, no_http: bool) -> Address | None:
    """The address of the HTTP API; None for none.

    Raises:
        InvalidArgumentError: One is given, and none is wanted; or it is not HOST:PORT.
    """
    if no_http:
        if http_listen is not None:
            raise InvalidArgumentError(
                "give either --http-listen or --no-http", field="http_listen"
            )
        return None
    if http_listen is not None:
        return Address.parse(http_listen, field="http_listen")
    return Address("127.0.0.1", 0) if listen.port == 0 else _DEFAULT.http_listen
