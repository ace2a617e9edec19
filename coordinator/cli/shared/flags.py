"""Flags that several commands take: how a completion is made, and where the coordinator is."""

from collections.abc import Sequence
from typing import Annotated

import typer

from coordinator.cli.shared.connection import COORDINATOR
from stagecoach.contract.errors import InvalidArgumentError

Temperature = Annotated[float | None, typer.Option(help="0, the default, is greedy.")]
TopP = Annotated[float | None, typer.Option(help="Keep the likeliest tokens of this probability.")]
TopK = Annotated[int | None, typer.Option(help="Keep this many tokens; 0 keeps all.")]
MinP = Annotated[float | None, typer.Option(help="Keep tokens of this share of the likeliest one.")]
RepetitionPenalty = Annotated[float | None, typer.Option(help="Over prompt and output; 1 is none.")]
PresencePenalty = Annotated[float | None, typer.Option(help="For tokens in the output; 0 is none.")]
FrequencyPenalty = Annotated[
    float | None, typer.Option(help="For each occurrence in the output; 0 is none.")
]
Seed = Annotated[
    int | None,
    typer.Option(
        callback=lambda seed: None if seed == -1 else seed,
        help="The same seed gives the same text, but for the rounding of the model's arithmetic. "
        "Default, and -1 as over HTTP: random.",
    ),
]
Stop = Annotated[
    list[str] | None, typer.Option(metavar="TEXT", help="Stop before this text; repeatable.")
]
MinTokens = Annotated[int, typer.Option(help="Tokens before which no end token or --stop ends it.")]
StopTokenIds = Annotated[
    str | None, typer.Option(metavar="ID,ID,...", help="Stop at any of these ids.")
]
IgnoreEos = Annotated[
    bool, typer.Option("--ignore-eos", help="Do not stop at the model's own end tokens.")
]
AllowedHost = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="Name, beside localhost, by which clients call the HTTP API; repeatable, * for any. "
        "On a loopback address without API keys, others are refused.",
    ),
]
CorsOrigin = Annotated[
    list[str] | None,
    typer.Option(
        metavar="ORIGIN",
        help="Let pages of this origin use the HTTP API, such as https://chat.example; "
        "repeatable, * for all.",
    ),
]
ServedModelName = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME[,...]",
        help="Name of the model instead of its own, or several with commas between; "
        "repeatable. Answers show the first.",
    ),
]

ModelName = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="A name of the model. Default: the only one that is served."),
]
CoordinatorAddress = Annotated[
    str,
    typer.Option(metavar="HOST:PORT", envvar=COORDINATOR, help="Address of the coordinator."),
]


def read_stop_token_ids(text: str | None) -> Sequence[int]:
    """Reads `--stop-token-ids`; none when it is not given.

    Raises:
        InvalidArgumentError: It is no list of token ids.
    """
    return () if text is None else read_token_ids("--stop-token-ids", text)


def read_token_ids(option: str, text: str) -> list[int]:
    """Reads a list of token ids, such as `1,15043,3186`.

    Args:
        option: That named it, with its dashes, for the error.
        text: The list.

    Raises:
        InvalidArgumentError: It is not one.
    """
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise InvalidArgumentError(
            f"{option} {text[:80]!r} is not a list of token ids, such as 1,15043,3186",
            field=option.lstrip("-").replace("-", "_"),
        ) from error
