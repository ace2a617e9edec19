"""The `stage-server` command: flags and environment become one `StageConfig`."""

import importlib
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from stage_server.compute.cuda_environment import prepare_cuda
from stage_server.compute.threads import wait_passively
from stage_server.core.config import StageConfig, parse_bytes
from stage_server.process.place import own_layers
from stagecoach.contract.address import Address
from stagecoach.contract.errors import InvalidArgumentError, StagecoachError
from stagecoach.contract.layer_range import LayerRange
from stagecoach.contract.stage_choices import (
    DTYPE_NAMES,
    ENGINE_NAMES,
    KV_DTYPE_NAMES,
    WEIGHTS_NAMES,
)
from stagecoach.contract.unexpected import in_words
from stagecoach.process import value_completion
from stagecoach.process.cores import num_cores
from stagecoach.process.flags import in_flags_of
from stagecoach.process.grpc_environment import prepare_grpc
from stagecoach.process.lasting_objects import lasting_objects
from stagecoach.process.standard_streams import open_missing_streams, written_output
from stagecoach.process.stop_signals import stop_signals
from stagecoach.security.tls_files import TlsFiles
from stagecoach.telemetry.log_config import LOG_FORMATS, LOG_LEVELS, LogConfig
from stagecoach.telemetry.logs import set_up_logging
from stagecoach.version import __version__

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)

_DEFAULT = StageConfig(model="demo", layers=LayerRange(0, 1))
_DEFAULT_LOG = LogConfig()

_log = logging.getLogger(__name__)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"stage-server {__version__}")
        raise typer.Exit


@app.command(
    context_settings={
        "auto_envvar_prefix": "STAGECOACH",
        "help_option_names": ["-h", "--help"],
    }
)
def stage_server(
    model: Annotated[
        str,
        typer.Option(
            autocompletion=value_completion.models,
            help="Local Hugging Face folder, hub id, path of a .gguf file, demo or shape:NAME.",
        ),
    ],
    layers: Annotated[
        str | None,
        typer.Option(metavar="START:END", help="Decoder layers of this stage, half-open."),
    ] = None,
    stage: Annotated[
        str | None,
        typer.Option(
            metavar="I/N", help="Instead of layers: the Ith of N stages; all of them divide alike."
        ),
    ] = None,
    stage_memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE,...",
            help="For stage: memory of each of the N devices, such as 12GiB,8GiB,12GiB. Default: "
            "they are alike.",
        ),
    ] = None,
    listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Address; port 0 takes a free one.")
    ] = str(_DEFAULT.listen),
    device: Annotated[
        str,
        typer.Option(autocompletion=value_completion.devices, help="auto, cpu, cuda or cuda:N."),
    ] = _DEFAULT.device,
    device_share: Annotated[
        float, typer.Option(help="Share of a card's memory that this stage may take.")
    ] = _DEFAULT.device_share,
    dtype: Annotated[
        str,
        typer.Option(
            autocompletion=value_completion.dtypes,
            help=f"Of the arithmetic: {', '.join(DTYPE_NAMES)}.",
        ),
    ] = _DEFAULT.dtype,
    weights: Annotated[
        str,
        typer.Option(
            autocompletion=value_completion.weights,
            help=f"Form of the matrices: {', '.join(WEIGHTS_NAMES)}.",
        ),
    ] = _DEFAULT.weights,
    kv_dtype: Annotated[
        str,
        typer.Option(
            autocompletion=value_completion.kv_dtypes,
            help=f"How keys and values are kept: {', '.join(KV_DTYPE_NAMES)}.",
        ),
    ] = _DEFAULT.kv_dtype,
    kv_memory: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="KV memory, such as 2GiB. Default: by the device."),
    ] = None,
    kv_block_size: Annotated[
        int, typer.Option(help="Tokens in one KV block.")
    ] = _DEFAULT.kv_block_size,
    max_num_seqs: Annotated[
        int, typer.Option(help="Most sequences at once.")
    ] = _DEFAULT.max_num_seqs,
    max_num_batched_tokens: Annotated[
        int | None,
        typer.Option(
            help="Most tokens in one micro-batch. Default: 2048; 512 on GPUs below 16 GB."
        ),
    ] = None,
    max_model_len: Annotated[
        int | None, typer.Option(help="Most tokens in one sequence. Default: the model's.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="CPU threads. Default: the physical cores; 1 if emulated.")
    ] = None,
    engine: Annotated[
        str,
        typer.Option(
            autocompletion=value_completion.engines, help=f"One of {', '.join(ENGINE_NAMES)}."
        ),
    ] = _DEFAULT.engine,
    emulate: Annotated[
        str | None,
        typer.Option(
            metavar="GPU",
            autocompletion=value_completion.gpus,
            help="For engine emulated: its GPU, such as rtx-3060-12gb.",
        ),
    ] = None,
    efficiency: Annotated[
        float, typer.Option(help="For engine emulated: share of the GPU's figures it reaches.")
    ] = _DEFAULT.efficiency,
    tls_ca: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="CA whose certificate coordinators have to show."),
    ] = None,
    tls_cert: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Certificate of this stage.")
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Private key of the certificate.")
    ] = None,
    insecure_bind: Annotated[
        bool,
        typer.Option(
            "--insecure-bind", help="Let other machines reach it without TLS: anyone may use it."
        ),
    ] = False,
    drain_grace_s: Annotated[
        float, typer.Option(help="Seconds that work in flight gets after SIGTERM.")
    ] = _DEFAULT.drain_grace_s,
    hang_timeout_s: Annotated[
        float,
        typer.Option(
            help="Seconds, and 0.25 a token, after which a step counts as hung; after four times"
            " as long the stage ends."
        ),
    ] = _DEFAULT.hang_timeout_s,
    json_output: Annotated[
        bool,
        typer.Option(
            "--json", envvar="STAGECOACH_JSON", help="Print one JSON line on stdout when ready."
        ),
    ] = False,
    json_progress: Annotated[
        bool,
        typer.Option(
            "--json-progress",
            help="Print JSON lines on stdout: its address when it listens, then how far it is.",
        ),
    ] = False,
    exit_with_parent: Annotated[
        bool, typer.Option("--exit-with-parent", help="Stop when stdin reaches its end.")
    ] = False,
    metrics_listen: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT", help="Serve metrics to Prometheus; port 0 takes a free one."
        ),
    ] = None,
    log_format: Annotated[
        str, typer.Option(help=f"One of {', '.join(LOG_FORMATS)}.")
    ] = _DEFAULT_LOG.format,
    unsafe_fault_hooks: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            allow_from_autoenv=False,
            help="For tests only: FILE tells this stage how its next forward fails.",
        ),
    ] = None,
    log_level: Annotated[
        str,
        typer.Option(
            autocompletion=value_completion.log_levels,
            help=f"One of {', '.join(LOG_LEVELS)}; debug adds tracebacks.",
        ),
    ] = _DEFAULT_LOG.level,
    _version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_print_version,
            is_eager=True,
            allow_from_autoenv=False,
            help="Print the version.",
        ),
    ] = False,
) -> None:
    """Serves one layer range of a model to a coordinator."""
    with _reported_failures():
        try:
            log = LogConfig(format=log_format, level=log_level)
            config = StageConfig(
                model=model,
                layers=own_layers(model, layers=layers, stage=stage, stage_memory=stage_memory),
                listen=Address.parse(listen, field="listen"),
                device=device,
                device_share=device_share,
                dtype=dtype,
                weights=weights,
                kv_dtype=kv_dtype,
                kv_memory_bytes=(
                    None if kv_memory is None else parse_bytes(kv_memory, field="kv_memory")
                ),
                kv_block_size=kv_block_size,
                max_num_seqs=max_num_seqs,
                max_num_batched_tokens=max_num_batched_tokens,
                max_model_len=max_model_len,
                threads=(num_cores() if threads is None and engine != "emulated" else threads),
                engine=engine,
                emulate=emulate,
                efficiency=efficiency,
                json_output=json_output,
                json_progress=json_progress,
                exit_with_parent=exit_with_parent,
                tls=TlsFiles.mutual(tls_ca, tls_cert, tls_key),
                insecure_bind=insecure_bind,
                drain_grace_s=drain_grace_s,
                metrics_listen=(
                    None
                    if metrics_listen is None
                    else Address.parse(metrics_listen, field="metrics_listen")
                ),
                unsafe_fault_hooks=unsafe_fault_hooks,
                hang_timeout_s=hang_timeout_s,
            )
        except InvalidArgumentError as error:
            raise typer.BadParameter(in_flags_of(stage_server, error).message) from error
        _run(config, log)


@contextmanager
def _reported_failures() -> Iterator[None]:
    """Turns what is raised inside into a line on stderr and exit code 1."""
    try:
        yield
    except (typer.Exit, typer.BadParameter):
        raise
    except StagecoachError as error:
        _fail(in_flags_of(stage_server, error).message)
    except Exception as error:  # a bug; a command shows one line and no traceback
        _log.debug("failed", exc_info=True)
        _fail(in_words(error))


def _run(config: StageConfig, log: LogConfig) -> None:
    """Prepares the process, then serves."""
    for number in stop_signals():
        signal.signal(number, _exit_early)
    handler = set_up_logging(log)
    _set_environment()
    with lasting_objects():
        from stage_server.process.server import run  # imports torch, after its environment is set

    run(config, num_lost_log_lines=lambda: handler.num_lost)


def prepare() -> None:
    """Imports what a stage that computes needs, for a process that stages are forked from."""
    _set_environment()
    with lasting_objects():
        importlib.import_module("stage_server.process.server")
        importlib.import_module("stage_server.compute.torch_engine")


def _set_environment() -> None:
    """Sets what libraries read when they are imported."""
    prepare_grpc()
    wait_passively()
    prepare_cuda(os.environ)


def _exit_early(_number: int, _frame: FrameType | None) -> None:
    """Ends a process that has nothing to drain yet."""
    raise SystemExit(0)


def _fail(message: str) -> None:
    """Says in one line why the stage server cannot go on."""
    print(f"stage-server: {' '.join(message.split())}", file=sys.stderr)
    raise typer.Exit(1)


def run_command() -> None:
    """Runs the command line and exits with its code."""
    open_missing_streams()
    try:
        with _reported_failures(), written_output():
            app(prog_name="stage-server")
    except typer.Exit as ended:
        sys.exit(ended.exit_code)
