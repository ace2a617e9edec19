"""`coordinator-cli chat`: its flags."""

import asyncio
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from coordinator.cli.shared import flags
from coordinator.cli.shared.connection import ApiKeyFile, Connection, TlsCa
from coordinator.cli.shared.failures import EXIT_FAILURE, reported_failures
from stagecoach.contract.address import DEFAULT_ADDRESS
from stagecoach.contract.errors import InvalidArgumentError

if TYPE_CHECKING:
    from coordinator.cli.chat.session import Input
    from coordinator.cli.chat.settings import Settings
    from coordinator.cli.chat.view import View

DEFAULT_MAX_TOKENS = 1024
STATUS_TIMEOUT_S = 10.0


def chat(
    system: Annotated[str | None, typer.Option(help="System message of the conversation.")] = None,
    max_tokens: Annotated[
        int, typer.Option(help="Most tokens of one answer.")
    ] = DEFAULT_MAX_TOKENS,
    min_tokens: flags.MinTokens = 0,
    temperature: flags.Temperature = None,
    top_p: flags.TopP = None,
    top_k: flags.TopK = None,
    min_p: flags.MinP = None,
    repetition_penalty: flags.RepetitionPenalty = None,
    presence_penalty: flags.PresencePenalty = None,
    frequency_penalty: flags.FrequencyPenalty = None,
    seed: flags.Seed = None,
    stop: flags.Stop = None,
    stop_token_ids: flags.StopTokenIds = None,
    drop_oldest: Annotated[
        bool,
        typer.Option(
            "--drop-oldest", help="Forget the oldest turns when the conversation is too long."
        ),
    ] = False,
    timeout_s: Annotated[
        float | None, typer.Option(help="Seconds for one answer. Default: no limit.")
    ] = None,
    model: flags.ModelName = None,
    coordinator: flags.CoordinatorAddress = DEFAULT_ADDRESS,
    tls_ca: TlsCa = None,
    api_key_file: ApiKeyFile = None,
    history: Annotated[
        bool, typer.Option(help="Keep what is typed in the state folder of the user.")
    ] = True,
    stats: Annotated[
        bool, typer.Option("--stats", help="Tell on stderr after each answer how fast it was.")
    ] = False,
    json_output: Annotated[
        bool, typer.Option("--json", help="Print one JSON object for each answer.")
    ] = False,
) -> None:
    """Talks with the model; /help shows what else can be typed."""
    with reported_failures(chat):
        from coordinator.cli.chat.settings import Settings
        from stagecoach.client import GenerateOptions
        from stagecoach.client.call_timeout import call_timeout_s

        stop_ids = flags.read_stop_token_ids(stop_token_ids)
        call_timeout_s(timeout_s)  # before anything is asked
        options = GenerateOptions(
            model=model,
            max_tokens=max_tokens,
            min_tokens=min_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty,
            seed=seed,
            stop=stop or (),
            stop_token_ids=stop_ids,
        )
        source, view = _doors(history=history, stats=stats, json_output=json_output)
        settings = Settings(options, drop_oldest=drop_oldest)
        connection = Connection.of(coordinator, tls_ca, api_key_file)
        if not asyncio.run(_chat(connection, system, settings, source, view, timeout_s)):
            raise typer.Exit(EXIT_FAILURE)


def _doors(*, history: bool, stats: bool, json_output: bool) -> "tuple[Input, View]":
    """Where messages come from and answers go, by what stdin and stdout are."""
    from coordinator.cli.chat.input import LineInput, TerminalInput
    from coordinator.cli.chat.view import JsonView, TextView

    is_typed = sys.stdin.isatty()
    if is_typed and sys.stdout.isatty() and not json_output:
        return TerminalInput(history=history), TextView(stats=stats, in_terminal=True)
    source = LineInput(prompt="> " if is_typed else "")
    return source, JsonView() if json_output else TextView(stats=stats, in_terminal=False)


async def _chat(
    connection: Connection,
    system: str | None,
    settings: "Settings",
    source: "Input",
    view: "View",
    timeout_s: float | None,
) -> bool:
    """Runs a whole chat; True when no question failed, or when a person saw it fail.

    Raises:
        StagecoachError: There is no coordinator that can chat.
    """
    from coordinator.cli.chat.conversation import Conversation
    from coordinator.cli.chat.input import quiet_keyboard, tidy_death
    from coordinator.cli.chat.session import ChatSession

    async with connection.async_client() as client:
        status = await client.status(timeout_s=STATUS_TIMEOUT_S)
        model = status.of_model(settings.options.get("model"))
        if not model.has_tokenizer:
            raise InvalidArgumentError(
                f"{model.model_id} has no tokenizer: it takes token ids, with generate",
                field="model",
            )
        session = ChatSession(
            client,
            model,
            conversation=Conversation(system),
            settings=settings,
            view=view,
            timeout_s=timeout_s,
        )
        if source.is_interactive:
            view.notice(f"{model.model_id}: /help shows what can be typed, Ctrl-D leaves\n")
        if not source.is_interactive:
            return await session.run(source)
        with tidy_death(), quiet_keyboard():
            await session.run(source)
        return True
