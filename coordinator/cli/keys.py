"""`coordinator-cli keys`: API keys of clients."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from coordinator.cli.shared.failures import reported_failures

keys = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

_HEADING = "# API keys of Stagecoach clients: NAME:sha256:HEX or NAME:KEY, one a line\n"


@keys.callback()
def api_keys() -> None:
    """Makes API keys, with which clients are known."""


@keys.command()
def new(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="List of keys; made when it is not there.")
    ],
    name: Annotated[str, typer.Option(help="Of the key's owner.")],
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Makes a key, adds its hash to FILE and prints the key, which is kept nowhere else.

    A running coordinator takes the new list up. To withdraw a key, delete its line.
    """
    with reported_failures(new):
        from coordinator.doors.access.api_key import ApiKeys, new_key
        from stagecoach.security.private_file import read_private, write_private

        made = new_key(name)
        exists = file.exists()
        text = read_private(file, field="file").decode() if exists else _HEADING
        text = f"{text.rstrip()}\n{made.line}\n"
        ApiKeys.parse(text, source=str(file))  # before the file is touched
        write_private(file, text.encode(), overwrite=exists)
        if json_output:
            print(json.dumps({"name": made.name, "key": made.key, "file": str(file)}))
        else:
            print(made.key)
            print(f"added to {file} as {made.name}; the key is not shown again", file=sys.stderr)
