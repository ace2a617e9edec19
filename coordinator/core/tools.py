"""Functions of a client that a model may ask it to call, and the calls themselves."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum

from stagecoach.contract.errors import InvalidArgumentError

MAX_TOOLS = 128
MAX_TOOL_NAME_CHARS = 128
MAX_TOOLS_CHARS = 320 * 1024
"""Characters of the schemas and descriptions of all tools of a request."""
MAX_TOOL_CALLS = 128
"""Calls in one message."""

_TOOLS_FIELD = "prompt.chat.tools"
_NAME = re.compile(r"[A-Za-z0-9_.:/-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A call that an assistant asked for."""

    call_id: str
    """By which the answer to it names it."""
    name: str
    arguments: str
    """Arguments as a JSON object."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A function that may be called.

    Raises:
        InvalidArgumentError: Its name is empty, too long, or has other characters than ASCII
            letters, digits and `_.:/-`.
    """

    name: str
    description: str | None = None
    parameters: str | None = None
    """JSON schema of the object that holds the arguments. None: it takes no arguments."""
    is_strict: bool = False
    """Whether a schema that cannot be kept to is refused, also where no call is forced."""

    def __post_init__(self) -> None:
        if len(self.name) > MAX_TOOL_NAME_CHARS or not _NAME.fullmatch(self.name):
            raise InvalidArgumentError(
                f"{_TOOLS_FIELD} has a tool whose name is {self.name[:MAX_TOOL_NAME_CHARS]!r}: it"
                f" must have 1 to {MAX_TOOL_NAME_CHARS} ASCII letters, digits and any of _.:/-",
                field=_TOOLS_FIELD,
            )


class ToolMode(Enum):
    """Whether an output calls tools."""

    AUTO = "auto"
    """The model chooses."""
    REQUIRED = "required"
    """It calls at least one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolUse:
    """The tools of a request, and which of them its output may or must call.

    Raises:
        InvalidArgumentError: There is no tool, there are too many, two have one name, they are too
            long, or one is to be called that is not there.
    """

    tools: tuple[Tool, ...]
    mode: ToolMode = ToolMode.AUTO
    callable_names: frozenset[str] | None = None
    """Names of those that may be called; the others are only shown. None: all."""
    allows_several: bool = True
    """Whether one output may call more than one, or one more than once."""

    def __post_init__(self) -> None:
        if not self.tools:
            raise InvalidArgumentError(f"{_TOOLS_FIELD} is empty", field=_TOOLS_FIELD)
        if len(self.tools) > MAX_TOOLS:
            raise InvalidArgumentError(
                f"{_TOOLS_FIELD} has {len(self.tools)} tools, at most {MAX_TOOLS} are taken",
                field=_TOOLS_FIELD,
            )
        names = {tool.name for tool in self.tools}
        if len(names) < len(self.tools):
            raise InvalidArgumentError(
                f"{_TOOLS_FIELD} has two tools of one name", field=_TOOLS_FIELD
            )
        if self.num_chars > MAX_TOOLS_CHARS:
            raise InvalidArgumentError(
                f"{_TOOLS_FIELD} has {self.num_chars} characters, at most {MAX_TOOLS_CHARS} are"
                " taken",
                field=_TOOLS_FIELD,
            )
        self._check_callable(names)

    @property
    def num_chars(self) -> int:
        """Characters of the descriptions and schemas of all tools."""
        return sum(len(tool.description or "") + len(tool.parameters or "") for tool in self.tools)

    @property
    def callable_tools(self) -> tuple[Tool, ...]:
        """The tools that may be called, in order."""
        if self.callable_names is None:
            return self.tools
        return tuple(tool for tool in self.tools if tool.name in self.callable_names)

    def _check_callable(self, names: Collection[str]) -> None:
        if self.callable_names is None:
            return
        unknown = sorted(self.callable_names.difference(names))
        if unknown or not self.callable_names:
            wanted = repr(unknown[0][:MAX_TOOL_NAME_CHARS]) if unknown else "no tool"
            raise InvalidArgumentError(
                f"prompt.chat.tool_choice names {wanted}, which is not among the tools"
                if unknown
                else "prompt.chat.tool_choice allows no tool",
                field="prompt.chat.tool_choice",
            )
