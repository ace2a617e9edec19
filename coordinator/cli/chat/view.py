"""Where a chat shows what happens: a terminal, plain text, or JSON."""

import json
import sys
from typing import Protocol

from rich.console import Console
from rich.markup import escape

from coordinator.cli.chat.answer import Answer
from coordinator.cli.shared.completion_output import completion_json, summary_line
from coordinator.cli.shared.console import printable


class View(Protocol):
    """Told by the session, in this order for one question: `waiting`, `text`, `ended`."""

    def waiting(self) -> None:
        """A question was sent and nothing of its answer is here."""
        ...

    def text(self, text: str) -> None:
        """More of the answer."""
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

    def waiting(self) -> None:
        """Shows a spinner until there is text."""
        self._last = ""
        if self._in_terminal:
            self._spinner.start()

    def text(self, text: str) -> None:
        """Writes it at once."""
        self._spinner.stop()
        if not self._last:
            text = text.lstrip("\n")
        shown = printable(text) if self._in_terminal else text
        sys.stdout.write(shown)
        sys.stdout.flush()
        self._last = shown or self._last

    def ended(self, answer: Answer, advice: str | None) -> None:
        """Ends the line, and says how the answer ended if not by itself."""
        self._spinner.stop()
        if self._last and not self._last.endswith("\n"):
            sys.stdout.write("\n")
            sys.stdout.flush()
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

    def text(self, text: str) -> None:
        """Says nothing: the object has all of it."""

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
