"""Where the messages of a chat come from: lines of a pipe, or a person at a terminal."""

import asyncio
import os
import signal
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from coordinator.cli.chat.message_text import is_complete, message_of
from stagecoach.contract.errors import InvalidArgumentError

if TYPE_CHECKING:
    from prompt_toolkit.history import History
    from prompt_toolkit.key_binding import KeyBindings

_HISTORY_FILE = "chat_history"
_LOCAL_FLAGS = 3  # in what tcgetattr returns
_HINT = "(Ctrl-D or /exit leaves)"
_DEADLY = (signal.SIGTERM, signal.SIGHUP)


class LineInput:
    """Reads stdin line by line; a message may have several.

    Args:
        prompt: Written to stderr before each message; for a person whose answers go elsewhere.
    """

    is_interactive = False

    def __init__(self, prompt: str = "") -> None:
        self._prompt = prompt

    async def read(self, toolbar: str) -> str | None:
        """Waits for the next message; blocks the event loop, which has nothing else to do.

        Raises:
            InvalidArgumentError: stdin is not UTF-8 text.
        """
        print(self._prompt, end="", file=sys.stderr, flush=True)
        lines: list[str] = []
        with _default_interrupts():
            while line := self._read_line():
                lines.append(line.removesuffix("\n"))
                if is_complete("\n".join(lines)):
                    break
        return message_of("\n".join(lines)) if lines else None

    def _read_line(self) -> str:
        try:
            return sys.stdin.readline()
        except UnicodeDecodeError as error:
            raise InvalidArgumentError(
                f"stdin is not UTF-8 text: {error.reason} at byte {error.start}", field="prompt"
            ) from error


class TerminalInput:
    """Line editing with history, several lines a message, and completion of commands.

    Args:
        history: Keep what is typed for later chats.
    """

    is_interactive = True

    def __init__(self, *, history: bool) -> None:
        """Opens the history.

        Raises:
            OSError: Its file cannot be opened.
        """
        from prompt_toolkit import PromptSession
        from prompt_toolkit.history import InMemoryHistory
        from prompt_toolkit.styles import Style

        from coordinator.cli.chat.command_completer import CommandCompleter

        self._session: PromptSession[str] = PromptSession(
            message=[("class:you", "> ")],
            prompt_continuation=[("class:you", "  ")],
            multiline=True,
            history=_file_history() if history else InMemoryHistory(),
            completer=CommandCompleter(),
            complete_while_typing=False,
            key_bindings=_key_bindings(),
            reserve_space_for_menu=4,
            style=Style(
                [("you", "bold ansicyan"), ("bottom-toolbar", "noreverse ansibrightblack")]
            ),
        )

    async def confirm(self, question: str) -> bool:
        """Asks a question; Enter alone and Ctrl-D are no. What was typed before is no answer.

        Raises:
            KeyboardInterrupt: Ctrl-C.
        """
        from prompt_toolkit import PromptSession
        from prompt_toolkit.input.typeahead import clear_typeahead

        asking: PromptSession[str] = PromptSession()
        termios.tcflush(sys.stdin.fileno(), termios.TCIFLUSH)
        clear_typeahead(asking.app.input)
        try:
            text = await asking.prompt_async(f"{question} [y/N] ", handle_sigint=False)
        except EOFError:
            return False
        return text.strip().lower() in ("y", "yes")

    async def read(self, toolbar: str) -> str | None:
        """Lets the user edit a message; None on Ctrl-D."""
        while True:
            try:
                text = await self._session.prompt_async(bottom_toolbar=toolbar, handle_sigint=False)
            except EOFError:
                return None
            except KeyboardInterrupt:
                print(_HINT, file=sys.stderr)
                continue
            return message_of(text)


def history_path() -> Path:
    """Where chats keep what was typed, by the XDG base directory specification."""
    state = os.environ.get("XDG_STATE_HOME", "")
    # The specification: a relative path is invalid and to be ignored.
    root = Path(state) if state.startswith("/") else Path.home() / ".local" / "state"
    return root / "stagecoach" / _HISTORY_FILE


def _file_history() -> "History":
    """The history file, which only its owner may read."""
    from prompt_toolkit.history import FileHistory

    path = history_path()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.close(os.open(path, os.O_CREAT | os.O_APPEND, 0o600))
    path.chmod(0o600)
    return FileHistory(str(path))


def _key_bindings() -> "KeyBindings":
    """Enter sends a message that is complete and else begins a line, as Alt-Enter always does."""
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    bindings = KeyBindings()

    @bindings.add("enter")
    def enter(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if is_complete(buffer.text):
            buffer.validate_and_handle()
        else:
            buffer.insert_text("\n")

    @bindings.add("escape", "enter")
    def alt_enter(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return bindings


@contextmanager
def _default_interrupts() -> Iterator[None]:
    """Ctrl-C raises at once, also while the event loop is blocked."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def tidy_death() -> Iterator[None]:
    """A signal that ends the process lets the block end first, which puts the terminal back.

    For the task that runs the chat.
    """
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None, "a coroutine runs in a task"
    received: list[int] = []

    def leave(number: int) -> None:
        received.append(number)
        task.cancel()

    for number in _DEADLY:
        loop.add_signal_handler(number, leave, number)
    try:
        yield
    finally:
        for number in _DEADLY:
            loop.remove_signal_handler(number)
        if received:
            os.kill(os.getpid(), received[0])  # whoever waits for it is told the truth


@contextmanager
def quiet_keyboard() -> Iterator[None]:
    """What is typed while an answer comes is neither echoed into it nor lost: it is the next input.

    Signals such as that of Ctrl-C are sent as before.
    """
    keyboard = sys.stdin.fileno()
    before = termios.tcgetattr(keyboard)
    quiet = [*before]
    quiet[_LOCAL_FLAGS] &= ~(termios.ECHO | termios.ICANON)
    termios.tcsetattr(keyboard, termios.TCSANOW, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(keyboard, termios.TCSANOW, before)
