"""The loop of a chat: read a message, run it as a command or ask the model, show the answer."""

import asyncio
import signal
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, cast

from coordinator.cli.chat.answer import Answer
from coordinator.cli.chat.commands import Command, Verb, help_text, literal, parse_command
from coordinator.cli.chat.conversation import Conversation, Exchange, answered_turns
from coordinator.cli.chat.settings import Settings, setting_name
from coordinator.cli.chat.transcript import write_transcript
from coordinator.cli.chat.view import View
from coordinator.cli.shared.completion_output import print_stats
from stagecoach.client import (
    AsyncChatStream,
    AsyncClient,
    ChatMessage,
    Completion,
    ContentPart,
    ContextLengthExceededError,
    FinishReason,
    GenerateOptions,
    ModelStatus,
    ReasoningPart,
    RequestAbortedError,
    RoundEnds,
    StagecoachError,
    ToolCall,
    ToolResult,
)
from stagecoach.client.function_tool import ToolFunction
from stagecoach.contract.error_words import in_words_of


class Input(Protocol):
    """Where messages come from."""

    is_interactive: bool
    """A person types: Ctrl-C stops an answer, and the chat goes on."""

    async def read(self, toolbar: str) -> str | None:
        """Waits for the next message; None at the end.

        Args:
            toolbar: State of the chat, for those who can show it.

        Raises:
            KeyboardInterrupt: Ctrl-C where no person types.
        """
        ...


Confirm = Callable[[str], Awaitable[bool]]
"""Asks a person a question. Raises KeyboardInterrupt on Ctrl-C."""


class Tools(NamedTuple):
    """Functions that the model may ask for, and who says whether they are called."""

    functions: Sequence[ToolFunction]
    confirm: Confirm


class ChatSession:
    """One chat with one model; within one event loop.

    Args:
        client: Talks to the coordinator.
        model: What the coordinator said of it at the start.
        conversation: What was said before.
        settings: How answers are made.
        view: Where everything is shown.
        timeout_s: Time limit of one answer.
        tools: Functions that the model may ask for; None: none.
    """

    def __init__(
        self,
        client: AsyncClient,
        model: ModelStatus,
        *,
        conversation: Conversation,
        settings: Settings,
        view: View,
        timeout_s: float | None,
        tools: Tools | None = None,
    ) -> None:
        self._client = client
        self._tools = tools
        self._model = model
        self._conversation = conversation
        self._settings = settings
        self._view = view
        self._timeout_s = timeout_s
        self._stream: AsyncChatStream | None = None
        self._was_stopped = False
        self._unanswered: str | None = None
        """The last question, when nothing of its answer came."""
        self._last_completion: Completion | None = None
        self._saved_to: Path | None = None
        self._num_failed = 0

    async def run(self, source: Input) -> bool:
        """Chats until the input ends or `/exit`.

        Returns:
            True when no question failed.

        Raises:
            KeyboardInterrupt: Ctrl-C where no person types.
        """
        loop = asyncio.get_running_loop()
        if source.is_interactive:
            loop.add_signal_handler(signal.SIGINT, self._stop_answer)
        while (message := await source.read(self._toolbar())) is not None:
            if not message:
                continue
            try:
                command = parse_command(message)
                if command is None:
                    await self._ask(literal(message))
                elif command.verb is Verb.EXIT:
                    break
                else:
                    await self._run(command)
            except StagecoachError as error:
                self._num_failed += 1
                self._view.problem(in_words_of(error, setting_name).message)
        return self._num_failed == 0

    def _stop_answer(self) -> None:
        """Ends the answer that is coming, if any; what there is of it stays."""
        if self._stream is not None:
            self._was_stopped = True
            self._stream.close()

    async def _run(self, command: Command) -> None:
        argument = command.argument
        match command.verb:
            case Verb.HELP:
                self._view.notice(help_text())
            case Verb.RESET:
                self._conversation.reset()
                self._unanswered = None
                self._view.notice("the conversation starts anew")
            case Verb.SYSTEM:
                self._conversation.system = argument or None
                self._view.notice("system message set" if argument else "no system message")
            case Verb.UNDO:
                self._undo()
            case Verb.RETRY:
                await self._retry()
            case Verb.SET:
                self._set(argument)
            case Verb.SAVE:
                self._save(argument)
            case Verb.STATS:
                self._show_stats()
            case Verb.EXIT:
                raise AssertionError("the loop leaves")

    async def _ask(self, question: str, *, instead_of: Exchange | None = None) -> None:
        """Asks, shows the answer as it comes, and keeps what came of it.

        Args:
            question: The message.
            instead_of: The exchange that it repeats; comes back when nothing of an answer comes.
        """
        self._unanswered = question
        answer = await self._answer(question)
        if any(turn.content or turn.tool_calls for turn in answer.turns):
            self._unanswered = None
            self._conversation.add(Exchange(question, answer.turns))
        elif instead_of is not None:
            self._conversation.add(instead_of)
        if answer.error is not None:
            self._num_failed += 1
        elif answer.completion is not None:
            self._last_completion = answer.completion
        self._view.ended(answer, self._advice(answer))

    async def _answer(self, question: str) -> Answer:
        """Streams one answer; drops the oldest turns if it may and must."""
        num_dropped = 0
        while True:
            answer = await self._stream_answer(question, num_dropped)
            if answer.turns or not isinstance(answer.error, ContextLengthExceededError):
                return answer
            if not (self._settings.drop_oldest and self._conversation.drop_oldest()):
                return answer
            num_dropped += 1

    async def _stream_answer(self, question: str, num_dropped: int) -> Answer:
        """Asks once; says before the answer how many turns were dropped for it."""
        messages = self._conversation.messages(question)
        self._was_stopped = False
        self._view.waiting()
        error: StagecoachError | None = None
        completion: Completion | None = None
        partial = ""
        async with self._client.chat_stream(
            messages,
            may_call=self._may_call,
            on_tool_error=_told,
            timeout_s=self._timeout_s,
            **self._options(),
        ) as stream:
            self._stream = stream
            try:
                async for event in stream:
                    if num_dropped:
                        self._view.notice(_dropped(num_dropped))
                        num_dropped = 0
                    match event:
                        case ContentPart():
                            partial += event.text
                            self._view.text(event.text)
                        case ReasoningPart():
                            self._view.reasoning(event.text)
                        case RoundEnds():
                            partial = ""
                        case ToolResult():
                            self._view.result(event)
                            self._view.waiting()
                completion = (await stream.result()).completions[-1]
            except StagecoachError as raised:
                if not (self._was_stopped and isinstance(raised, RequestAbortedError)):
                    error = in_words_of(raised, setting_name)
            finally:
                self._stream = None
        turns = answered_turns(stream.messages[len(messages) :])
        if partial:
            turns = (*turns, ChatMessage(role="assistant", content=partial))
        return Answer(
            text=stream.text,
            token_ids=stream.token_ids,
            turns=turns,
            completion=completion,
            error=error,
        )

    def _options(self) -> GenerateOptions:
        options = self._settings.options
        if self._tools is None:
            return options
        return cast(GenerateOptions, {**options, "tools": self._tools.functions})

    async def _may_call(self, call: ToolCall) -> bool:
        """Shows a call and asks a person; Ctrl-C stops the answer."""
        assert self._tools is not None, "no function is called where there is none"
        self._view.call(call)
        try:
            return await self._tools.confirm(f"call {call.name}?")
        except KeyboardInterrupt:
            self._stop_answer()
            return False

    def _advice(self, answer: Answer) -> str | None:
        """Says why an answer was cut off, and what can be done about one that failed."""
        max_model_len, completion = self._model.max_model_len, answer.completion
        if isinstance(answer.error, ContextLengthExceededError):
            return (
                f"The model holds {max_model_len} tokens. /reset starts anew, /undo takes the last "
                "turn back, /set drop-oldest on lets the oldest turns go."
            )
        if answer.error is not None:
            return "/retry asks again" if self._unanswered is not None else None
        if completion is None or completion.finish_reason is not FinishReason.LENGTH:
            return None
        if _num_tokens(completion) >= max_model_len:
            return (
                f"(cut off: the conversation fills all {max_model_len} tokens that the model "
                "holds; /reset starts anew)"
            )
        return (
            f"(cut off after {completion.usage.num_completion_tokens} tokens; "
            "/set max-tokens changes that)"
        )

    def _undo(self) -> None:
        if self._unanswered is not None:
            self._unanswered = None
            self._view.notice("the question without an answer is forgotten")
        elif (exchange := self._conversation.undo()) is not None:
            self._view.notice(f"taken back: {_shortened(exchange.question)}")
        else:
            self._view.notice("there is nothing to take back")

    async def _retry(self) -> None:
        if self._unanswered is not None:
            await self._ask(self._unanswered)
        elif (exchange := self._conversation.undo()) is not None:
            if not self._settings.options.get("temperature"):
                self._view.notice("(temperature is 0: the answer may well be the same)")
            await self._ask(exchange.question, instead_of=exchange)
        else:
            self._view.notice("there is nothing to ask again")

    def _set(self, argument: str) -> None:
        name, _, value = argument.partition(" ")
        if value.strip():
            self._settings.set(name, value.strip())
        shown = [
            f"{key.replace('_', '-')} {value}" for key, value in self._settings.shown().items()
        ]
        self._view.notice(", ".join(shown))

    def _save(self, argument: str) -> None:
        path = Path(argument).expanduser() if argument else self._saved_to
        if path is None:
            self._view.notice("/save needs the name of a file")
            return
        write_transcript(
            path,
            self._conversation,
            model=self._model.model_id,
            may_replace=path == self._saved_to,
        )
        self._saved_to = path
        self._view.notice(f"saved to {path}")

    def _show_stats(self) -> None:
        if self._last_completion is None:
            self._view.notice("there is no whole answer yet")
        else:
            print_stats(self._last_completion)

    def _toolbar(self) -> str:
        parts = [self._model.model_id]
        last = self._last_completion
        if last is None:
            parts.append(f"{self._model.max_model_len} tokens")
        else:
            parts.append(f"{_num_tokens(last)} of {self._model.max_model_len} tokens")
            parts.append(f"{last.tokens_per_second:.1f} tokens/s")
        return "  ·  ".join([*parts, "/help"])


def _told(_call: ToolCall, error: Exception) -> str:
    """What the model is told of an exception, and a person sees."""
    return f"Error: {type(error).__name__}: {error}"


def _num_tokens(completion: Completion) -> int:
    """Tokens of the conversation up to and with this answer."""
    return completion.usage.num_prompt_tokens + completion.usage.num_completion_tokens


def _dropped(num_turns: int) -> str:
    turns = "turn was" if num_turns == 1 else f"{num_turns} turns were"
    return f"(the oldest {turns} dropped: the conversation outgrew the model)"


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else f"{line[:57]}..."
