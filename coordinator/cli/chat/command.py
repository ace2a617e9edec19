"""`coordinator-cli chat`: its flags."""

import asyncio
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from coordinator.cli.shared import flags
from coordinator.cli.shared.connection import ApiKeyFile, Connection, TlsCa
from coordinator.cli.shared.failures import EXIT_FAILURE, reported_failures
from stagecoach.contract.address import DEFAULT_ADDRESS
from stagecoach.contract.errors import InvalidArgumentError

if TYPE_CHECKING:
    from coordinator.cli.chat.session import Input, Tools
    from coordinator.cli.chat.settings import Settings
    from coordinator.cli.chat.view import View
    from stagecoach.client.function_tool import ToolFunction

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
    tool: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE.py[:FUNCTION]",
            help="Python function that the model may ask for, or all of a file; repeatable. The "
            "file is run at once; a call only after you are asked, so in a terminal only.",
        ),
    ] = None,
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
        from coordinator.cli.chat.tool_files import read_tools
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
        functions = read_tools(tool or ())
        source, view = _doors(history=history, stats=stats, json_output=json_output)
        tools = _tools(functions, source)
        settings = Settings(options, drop_oldest=drop_oldest)
        connection = Connection.of(coordinator, tls_ca, api_key_file)
        if not asyncio.run(_chat(connection, system, settings, source, view, timeout_s, tools)):
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


def _tools(functions: "Sequence[ToolFunction]", source: "Input") -> "Tools | None":
    """The functions and whom to ask before they are called; None: there are none.

    Raises:
        InvalidArgumentError: There is nobody to ask.
    """
    from coordinator.cli.chat.input import TerminalInput
    from coordinator.cli.chat.session import Tools

    if not functions:
        return None
    if not isinstance(source, TerminalInput):
        raise InvalidArgumentError(
            "tool is for a chat in a terminal, and not with --json: each call is asked about",
            field="tool",
        )
    return Tools(functions, source.confirm)


async def _chat(
    connection: Connection,
    system: str | None,
    settings: "Settings",
    source: "Input",
    view: "View",
    timeout_s: float | None,
    tools: "Tools | None",
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
            tools=tools,
        )
        if source.is_interactive:
            view.notice(f"{model.model_id}: /help shows what can be typed, Ctrl-D leaves\n")
        if not source.is_interactive:
            return await session.run(source)
        with tidy_death(), quiet_keyboard():
            await session.run(source)
        return True
