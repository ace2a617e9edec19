"""All commands under one name."""

from typing import Annotated

import typer

from coordinator.cli.bench import bench
from coordinator.cli.certs import certs
from coordinator.cli.chat.command import chat
from coordinator.cli.generate import generate
from coordinator.cli.health import health
from coordinator.cli.keys import keys
from coordinator.cli.perplexity import perplexity
from coordinator.cli.plan import plan
from coordinator.cli.serve import serve
from coordinator.cli.status import status
from coordinator.cli.up import up
from stagecoach.version import __version__

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"coordinator-cli {__version__}")
        raise typer.Exit


@app.callback()
def coordinator_cli(
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
    """Runs and uses a large language model that is split over several machines."""


app.command()(up)
# As with `stage-server`, a container can be configured by its environment alone.
app.command(context_settings={"auto_envvar_prefix": "STAGECOACH"})(serve)
app.command()(generate)
app.command()(chat)
app.command()(status)
app.command()(health)
app.command()(plan)
app.command()(bench)
app.command()(perplexity)
app.add_typer(certs, name="certs")
app.add_typer(keys, name="keys")
