"""Where a chat shows what happens: a terminal, plain text, or JSON."""

import json
import sys
from typing import Protocol

from rich.console import Console
from rich.markup import escape

from coordinator.cli.chat.answer import Answer
from coordinator.cli.shared.completion_output import completion_json, summary_line
from coordinator.cli.shared.console import printable
from stagecoach.client import ToolCall, ToolResult

_DIM, _UNDIM = "\x1b[2m", "\x1b[22m"
"""What a terminal obeys."""

_MAX_RESULT_CHARS = 500


def _shortened(text: str) -> str:
    """What is shown of the result of a function, of which the model is told all."""
    return text if len(text) <= _MAX_RESULT_CHARS else f"{text[:_MAX_RESULT_CHARS]}..."


class View(Protocol):
    """Told by the session of one question: `waiting`, what comes, and at last `ended`.

    `waiting` comes again where the model goes on after functions were called.
    """

    def waiting(self) -> None:
        """A question was sent and nothing of its answer is here."""
        ...

    def reasoning(self, text: str) -> None:
        """More of what the model thinks."""
        ...

    def text(self, text: str) -> None:
        """More of the answer."""
        ...

    def call(self, call: ToolCall) -> None:
        """The model asks for a function; a person is asked next whether it may be called."""
        ...

    def result(self, result: ToolResult) -> None:
        """A function was called, or was not."""
        ...

    def ended(self, answer: Answer, advice: str | None) -> None:
        """The answer is whole, was stopped, or failed; there may be something to say about it."""
        ...

    def notice(self, text: str) -> None:
        """Something to know; may have several lines."""
        ...

    def problem(self, text: str) -> None:
        """Something that did not work, in one line."""
        ...


class TextView:
    """The answers on stdout, all else on stderr.

    Args:
        stats: Tell after each answer how fast it was.
        in_terminal: A person watches: show that an answer is awaited, and set answers apart.
    """

    def __init__(self, *, stats: bool, in_terminal: bool) -> None:
        self._stats = stats
        self._in_terminal = in_terminal
        self._console = Console(stderr=True, highlight=False, soft_wrap=not in_terminal)
        self._spinner = self._console.status("", spinner="dots", spinner_style="dim")
        self._last = ""
        """What was written last, of the answer or of its thinking."""
        self._is_thinking = False

    def waiting(self) -> None:
        """Shows a spinner until there is text."""
        self._last = ""
        self._is_thinking = False
        if self._in_terminal:
            self._spinner.start()

    def reasoning(self, text: str) -> None:
        """Writes it dimmed at once; nothing of it goes where no person watches."""
        if self._in_terminal:
            self._is_thinking = True
            self._write(text, dimmed=True)

    def text(self, text: str) -> None:
        """Writes it at once."""
        if self._is_thinking:
            text = text.lstrip("\n")
            if not text:
                return
            self._end_line()
            sys.stdout.write("\n")
            self._last, self._is_thinking = "", False
        self._write(text)

    def call(self, call: ToolCall) -> None:
        """Writes it in one line."""
        self._end_line()
        shown = printable(f"{call.name} {call.arguments}")
        self._console.print(f"[bold]{escape(shown)}[/bold]", soft_wrap=True)

    def result(self, result: ToolResult) -> None:
        """Writes what the model is told, dimmed, or why the call failed."""
        if result.error is None:
            self.notice(printable(_shortened(result.content)))
        else:
            self.problem(printable(_shortened(result.content)))

    def ended(self, answer: Answer, advice: str | None) -> None:
        """Ends the line, and says how the answer ended if not by itself."""
        self._end_line()
        if answer.completion is not None and self._stats:
            self.notice(summary_line(answer.completion))
        elif answer.completion is None and answer.error is None and self._in_terminal:
            self.notice("(stopped)")
        if answer.error is not None:
            self.problem(answer.error.message)
        if advice is not None:
            self.notice(advice)
        if self._in_terminal:
            self._console.print()

    def _write(self, text: str, *, dimmed: bool = False) -> None:
        self._spinner.stop()
        if not self._last:
            text = text.lstrip("\n")
        shown = printable(text) if self._in_terminal else text
        sys.stdout.write(f"{_DIM}{shown}{_UNDIM}" if dimmed and shown else shown)
        sys.stdout.flush()
        self._last = shown or self._last

    def _end_line(self) -> None:
        self._spinner.stop()
        if self._last and not self._last.endswith("\n"):
            sys.stdout.write("\n")
            sys.stdout.flush()
            self._last = "\n"

    def notice(self, text: str) -> None:
        """Writes it dimmed."""
        self._spinner.stop()
        self._console.print(f"[dim]{escape(text)}[/dim]")

    def problem(self, text: str) -> None:
        """Writes it in one line."""
        self._console.print(f"[red]{escape(' '.join(text.split()))}[/red]")


class JsonView:
    """One JSON object on stdout for each answer; notices on stderr."""

    def waiting(self) -> None:
        """Says nothing."""

    def reasoning(self, text: str) -> None:
        """Says nothing: the object has all of it."""

    def text(self, text: str) -> None:
        """Says nothing: the object has all of it."""

    def call(self, call: ToolCall) -> None:
        """Says nothing: no person is asked."""

    def result(self, result: ToolResult) -> None:
        """Says nothing: no function is called."""

    def ended(self, answer: Answer, advice: str | None) -> None:
        """Prints the object."""
        error = answer.error
        content: dict[str, object] = {
            "text": answer.text,
            "token_ids": answer.token_ids,
            "finish_reason": answer.finish_reason,
            "usage": None,
            "timings": None,
        }
        if answer.completion is not None:
            content = completion_json(answer.completion)
        content["error"] = error and {"reason": error.reason, "message": error.message}
        print(json.dumps(content), flush=True)
        if advice is not None:
            self.notice(advice)

    def notice(self, text: str) -> None:
        """Writes it to stderr."""
        print(text, file=sys.stderr, flush=True)

    problem = notice
