"""The `stage-server` command: flags and environment become one `StageConfig`."""

import logging
import signal
import sys
from types import FrameType
from typing import Annotated

import typer

from protos import __version__
from protos.errors import InvalidArgumentError, StagecoachError
from protos.grpc_environment import prepare_grpc
from protos.layer_range import LayerRange
from stage_server.config import (
    DTYPE_NAMES,
    ENGINE_NAMES,
    ListenAddress,
    StageConfig,
    parse_bytes,
)
from stage_server.threads import default_num_threads, wait_passively

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

LOG_LEVELS = ("debug", "info", "warning", "error")

_DEFAULT = StageConfig(model="demo", layers=LayerRange(0, 1))

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
            help="Local Hugging Face folder, hub id, path of a .gguf file, demo or shape:NAME."
        ),
    ],
    layers: Annotated[
        str, typer.Option(metavar="START:END", help="Decoder layers of this stage, half-open.")
    ],
    listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Address; port 0 takes a free one.")
    ] = str(_DEFAULT.listen),
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = _DEFAULT.device,
    dtype: Annotated[
        str, typer.Option(help=f"Of the weights: {', '.join(DTYPE_NAMES)}.")
    ] = _DEFAULT.dtype,
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
        int, typer.Option(help="Most tokens in one micro-batch.")
    ] = _DEFAULT.max_num_batched_tokens,
    max_model_len: Annotated[
        int | None, typer.Option(help="Most tokens in one sequence. Default: the model's.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="CPU threads. Default: the physical cores.")
    ] = None,
    engine: Annotated[
        str, typer.Option(help=f"One of {', '.join(ENGINE_NAMES)}.")
    ] = _DEFAULT.engine,
    emulate: Annotated[
        str | None,
        typer.Option(metavar="GPU", help="For engine emulated: its GPU, such as rtx-3060-12gb."),
    ] = None,
    efficiency: Annotated[
        float, typer.Option(help="For engine emulated: share of the GPU's figures it reaches.")
    ] = _DEFAULT.efficiency,
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
    exit_with_parent: Annotated[
        bool, typer.Option("--exit-with-parent", help="Stop when stdin reaches its end.")
    ] = False,
    unsafe_fault_hooks: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            allow_from_autoenv=False,
            help="For tests only: FILE tells this stage how its next forward fails.",
        ),
    ] = None,
    log_level: Annotated[
        str, typer.Option(help=f"One of {', '.join(LOG_LEVELS)}; debug adds tracebacks.")
    ] = "info",
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
    if log_level not in LOG_LEVELS:
        raise typer.BadParameter(f"log level {log_level!r} is not one of {', '.join(LOG_LEVELS)}")
    try:
        config = StageConfig(
            model=model,
            layers=LayerRange.parse(layers),
            listen=ListenAddress.parse(listen),
            device=device,
            dtype=dtype,
            kv_memory_bytes=(
                None if kv_memory is None else parse_bytes(kv_memory, field="kv_memory")
            ),
            kv_block_size=kv_block_size,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            max_model_len=max_model_len,
            threads=default_num_threads() if threads is None else threads,
            engine=engine,
            emulate=emulate,
            efficiency=efficiency,
            json_output=json_output,
            exit_with_parent=exit_with_parent,
            drain_grace_s=drain_grace_s,
            unsafe_fault_hooks=unsafe_fault_hooks,
            hang_timeout_s=hang_timeout_s,
        )
    except InvalidArgumentError as error:
        raise typer.BadParameter(error.message) from error
    try:
        _run(config, log_level)
    except StagecoachError as error:
        _fail(error.message)
    except Exception as error:
        _log.debug("failed", exc_info=True)
        _fail(f"{type(error).__name__}: {error}")


def _run(config: StageConfig, log_level: str) -> None:
    """Prepares the process, then serves."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _exit_early)
    logging.basicConfig(
        stream=sys.stderr,
        level=log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    prepare_grpc()
    wait_passively()
    from stage_server.server import run  # imports torch, after its environment is set

    run(config)


def _exit_early(_number: int, _frame: FrameType | None) -> None:
    """Ends a process that has nothing to drain yet."""
    raise SystemExit(0)


def _fail(message: str) -> None:
    """Says in one line why the stage server cannot go on."""
    print(f"stage-server: {' '.join(message.split())}", file=sys.stderr)
    raise typer.Exit(1)


def main() -> None:
    """Entry point of the `stage-server` command."""
    app(prog_name="stage-server")


if __name__ == "__main__":
    main()
