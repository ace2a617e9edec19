"""How the calls of one family of models are spelled, as data that grammar, reader and writer share.

An output with calls of tools is

    begin  NAME name_end ARGUMENTS  (next  NAME name_end ARGUMENTS)*  end

in every format that is known here. What varies are these four texts, and how arguments are
written. A call is held to its format by a grammar from its first character on, so that whoever
reads it meets exactly this.
"""

import re
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Self

from coordinator.dialogue.formats.framing import Framing

CALL_ID = "\udc01"
"""Stands for the id of a call in the texts of a format; never part of what a model writes."""
CALL_INDEX = "\udc02"
"""Stands for a number that the model counts its calls with."""
NAME = "\udc03"
"""Stands for the name of a call, or of a parameter, where it is written again behind itself."""
CONTROL = "\udc00"
"""Stands before what a special token spells, where one is wanted or was written; without it the
same characters are text."""

_JSON_TOKEN = re.compile(r'"[^"]*"|[{:,]')


class IdForm(Enum):
    """What ids of calls look like."""

    CALL = "call_ and 24 letters and digits"
    NINE = "nine letters and digits"
    """Templates of Mistral refuse others."""
    TEN = "ten small letters and digits"
    """The template of Solar Open asks for them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonArguments:
    """Arguments as a JSON object."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """Arguments one by one: `begin NAME end_of_name VALUE end`, with a separator between them.

    A value whose schema says that it is a string, and no more, may be written as it is; all others
    are JSON.
    """

    begin: str
    name_end: str
    """Between the name and a value in JSON."""
    end: str
    """After a value in JSON."""
    text_name_end: str | None
    """Between the name and a string that is written as it is; None: strings are JSON too."""
    text_end: str = ""
    """After a string that is written as it is, which cannot hold it."""
    separator: str = ""
    not_plain: str = ""
    """Characters that a string which is written as it is has only between `block`."""
    block: tuple[str, str] = ("", "")
    """Marks around a string that has such characters."""

    def of(self, name: str) -> Self:
        """The same form of one parameter, whose name stands wherever it is written again."""
        return replace(
            self, end=self.end.replace(NAME, name), text_end=self.text_end.replace(NAME, name)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CallFormat:
    """One way to write calls."""

    label: str
    """What it is called, in logs."""
    signs: tuple[str, ...]
    """Texts that are all in the chat template of a model that writes so."""
    opening: str
    """The beginning of `begin` by which a call is known."""
    begin: str
    name_end: str
    end: str
    next: str | None = None
    """Between the arguments of a call and the name of the next; None: there is only one."""
    arguments: JsonArguments | Parameters = field(default_factory=JsonArguments)
    is_known_by_name: bool = False
    """Whether a call is one only where the name of a tool and `name_end` follow `begin`."""
    is_whole_output: bool = False
    """Whether a call is the first that an output has, so that it counts only there."""
    is_json_document: bool = False
    """Whether a call is a JSON document as a whole, in which whitespace may vary."""
    content_end: str = ""
    """A special token that may end content which no call follows, before an end token does."""
    id_form: IdForm = IdForm.CALL
    framing: Framing | None = None
    """How the model marks what it says beside calls; None: content has no marks."""

    def __post_init__(self) -> None:
        assert self.begin.startswith(self.opening), "a call begins with its opening"
        assert self.is_known_by_name or not self.is_whole_output, "else any text may be one"

    def beginning(self, tool: str) -> str:
        """What a call of a tool begins with, which is the first of an output."""
        return self.begin + tool + self.name_end.replace(NAME, tool)

    def beginning_tokens(self, tool: str) -> list[str]:
        """The tokens of JSON in `beginning`, for calls that are JSON documents."""
        return _JSON_TOKEN.findall(self.beginning(tool))


JSON_ARGUMENTS = JsonArguments()
