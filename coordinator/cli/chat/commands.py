"""The lines of a chat that begin with a slash: their names, and how one is read. Pure."""

import difflib
from enum import StrEnum
from typing import NamedTuple

from stagecoach.contract.errors import InvalidArgumentError


class Verb(StrEnum):
    """What can be asked of the chat itself."""

    HELP = "help"
    RESET = "reset"
    SYSTEM = "system"
    UNDO = "undo"
    RETRY = "retry"
    SET = "set"
    SAVE = "save"
    STATS = "stats"
    EXIT = "exit"


class _Use(NamedTuple):
    arguments: str
    does: str


USES = {
    Verb.HELP: _Use("", "show this"),
    Verb.RESET: _Use("", "forget the conversation; the system message stays"),
    Verb.SYSTEM: _Use("[TEXT]", "set the system message; without TEXT take it away"),
    Verb.UNDO: _Use("", "take the last question and its answer back"),
    Verb.RETRY: _Use("", "ask the last question again"),
    Verb.SET: _Use("[NAME VALUE]", "such as temperature 0.7; alone, show what is set"),
    Verb.SAVE: _Use("[FILE]", "write the conversation as text, or as JSON to a .json file"),
    Verb.STATS: _Use("", "show where the time of the last answer went"),
    Verb.EXIT: _Use("", "leave, as Ctrl-D does"),
}

_ALIASES = {"quit": Verb.EXIT, "bye": Verb.EXIT, "?": Verb.HELP}


class Command(NamedTuple):
    """A line of a chat that begins with a slash."""

    verb: Verb
    argument: str
    """The rest of the line, stripped; may be empty."""


def parse_command(message: str) -> Command | None:
    """Reads a message as a command; None when it is for the model.

    A message that shall begin with a slash begins with two, see `literal`.

    Raises:
        InvalidArgumentError: It begins with a slash, but there is no such command.
    """
    if not message.startswith("/") or message.startswith("//"):
        return None
    name, *rest = message[1:].split(maxsplit=1) or [""]
    known = {str(verb): verb for verb in Verb} | _ALIASES
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean /{near[0]}?" if near else "/help shows what there is"
        raise InvalidArgumentError(
            f"there is no /{name[:40]}; {hint} (a message may begin with //)", field="command"
        )
    return Command(known[name], "".join(rest).strip())


def literal(message: str) -> str:
    """The text for the model: of two slashes at the beginning one goes."""
    return message[1:] if message.startswith("//") else message


def help_text() -> str:
    """All commands, one a line, and how to type."""
    rows = [(f"/{verb} {use.arguments}".rstrip(), use.does) for verb, use in USES.items()]
    rows += [
        ("Alt-Enter", 'one more line; so does \\ at the end of a line, and """ around several'),
        ("Ctrl-C", "stop the answer; what there is of it stays in the conversation"),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {does}" for name, does in rows)
