"""Python functions as tools: what the model is shown of one, and how its calls are read. No I/O."""

import dataclasses
import enum
import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

from stagecoach.client.annotations import Form, Property, UnreadableError, hints_of, object_form
from stagecoach.client.docstrings import docstring_of
from stagecoach.contract.errors import InvalidArgumentError

ToolFunction = Callable[..., object]
"""A function that the model may ask for. Its name, its signature with annotations, and its
docstring, in Google's or Sphinx's style, say what the model is told of it."""


class ToolError(Exception):
    """Raised by a function that a model called, to tell the model what was wrong.

    Any other exception leaves the chat as it is.
    """


@dataclass(frozen=True, slots=True)
class FunctionTool:
    """A function with what the model is shown of it."""

    function: ToolFunction
    name: str
    description: str
    form: Form
    """What its arguments are, as one object."""

    @classmethod
    def of(cls, function: ToolFunction, field: str) -> Self:
        """Reads the signature and the docstring of a function.

        Args:
            function: The function; of a method, bound.
            field: Argument that it was given as, for errors.

        Raises:
            InvalidArgumentError: It has no name, or a parameter that no JSON stands for.
        """
        name = getattr(function, "__name__", None)
        if not isinstance(name, str):
            raise InvalidArgumentError(
                f"{field} is a {type(function).__name__} without a name: give a function",
                field=field,
            )
        said = docstring_of(function)
        hints = hints_of(function, f"{field}: {name}()")
        properties = [
            _property(one, hints, said.parameters, f"{field}: {name}()")
            for one in inspect.signature(function).parameters.values()
        ]
        return cls(function, name, said.description, object_form(properties, f"{field}: {name}()"))

    @property
    def is_coroutine(self) -> bool:
        """Whether a call of it is awaited."""
        return inspect.iscoroutinefunction(inspect.unwrap(self.function)) or (
            inspect.iscoroutinefunction(self.function)
        )

    def call(self, text: str) -> object:
        """Calls the function and returns what it returns.

        Args:
            text: The arguments, a JSON object.

        Raises:
            ToolError: They are not what the function asks for, or it says what else is wrong.
            RuntimeError: It raised StopIteration, which would pass for the end of a chat.
            Exception: It raised it.
        """
        arguments = self.arguments(text)
        try:
            return self.function(**arguments)
        except StopIteration as error:
            raise RuntimeError(f"{self.name}() raised StopIteration") from error

    def arguments(self, text: str) -> dict[str, Any]:
        """The arguments of a call, as the function takes them.

        Args:
            text: A JSON object.

        Raises:
            ToolError: They are not what the function asks for.
        """
        try:
            arguments = self.form.read(json.loads(text), "arguments")
        except (UnreadableError, ValueError, RecursionError) as error:
            raise ToolError(f"the arguments of {self.name} are wrong: {error}") from error
        assert isinstance(arguments, dict), "forms of objects read dictionaries"
        return arguments


def result_text(name: str, result: object) -> str:
    """What a model is told that a function returned: text as it is, all else as JSON.

    Args:
        name: The function's name, for errors.
        result: What it returned.

    Raises:
        InvalidArgumentError: It can be written neither way.
    """
    if isinstance(result, str):
        return result
    try:
        return json.dumps(result, ensure_ascii=False, default=_plain)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidArgumentError(
            f"tools: {name}() returned a {type(result).__name__}, which is no text and cannot be"
            f" written as JSON: {error}",
            field="tools",
        ) from error


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, enum.Enum):
        return value.value
    raise TypeError(f"a {type(value).__name__} is no JSON")


def _property(
    one: inspect.Parameter, hints: dict[str, Any], said: dict[str, str], owner: str
) -> Property:
    if one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD, one.POSITIONAL_ONLY):
        kind = "positional only" if one.kind is one.POSITIONAL_ONLY else "of any number"
        raise InvalidArgumentError(
            f"{owner}: {one.name} is {kind}: the arguments of a call have names",
            field=owner.partition(":")[0],
        )
    return Property(
        one.name,
        hints.get(one.name, inspect.Parameter.empty),
        one.default is one.empty,
        one.default,
        said.get(one.name, ""),
    )
