"""Tables of the Python client: options, methods, results and errors, from their docstrings."""

import dataclasses
import inspect
import re
from collections.abc import Iterator, Mapping
from enum import Enum
from types import FunctionType
from typing import is_typeddict

from grpc import StatusCode

from coordinator.doors.http.errors import error_response
from stagecoach import client
from stagecoach.client import AsyncClient, Client, StagecoachError
from stagecoach.client.embedding import EmbedOptions
from stagecoach.client.prompt import PromptOptions
from stagecoach.client.request import GenerateOptions
from stagecoach.contract.status import to_status
from tools.attributes import Attribute, attributes
from tools.markdown import first_sentence, split_at, table

_MODULE = re.compile(r"\b(?:\w+\.)+")
"""The module of a class that stands inside another type."""
_GRPC_CODES = {code.value[0]: code.name for code in StatusCode}


def options() -> str:
    """The keyword arguments of a completion.

    Raises:
        ValueError: An option does not say what its default is.
    """
    return _options(attributes(GenerateOptions))


def prompt_options() -> str:
    """The keyword arguments that say how a prompt is read.

    Raises:
        ValueError: An option does not say what its default is.
    """
    return _options(attributes(PromptOptions))


def embed_options() -> str:
    """The keyword arguments of an embedding.

    Raises:
        ValueError: An option does not say what its default is.
    """
    return _options(attributes(EmbedOptions))


def _options(described: Mapping[str, Attribute]) -> str:
    rows = []
    for name, option in described.items():
        meaning, default = split_at(option.text, "Default: ")
        if not default:
            raise ValueError(f"{name} does not say what its default is")
        rows.append(
            (f"`{name}`", f"`{option.annotation.removesuffix(' | None')}`", default, meaning)
        )
    return table(("option", "type", "default", "meaning"), rows)


def methods() -> str:
    """The methods of both clients, whose arguments are the same.

    Raises:
        ValueError: One client has a method or an argument that the other has not.
    """
    rows = []
    of_async = dict(_methods(AsyncClient))
    of_both = dict(_methods(Client))
    if list(of_both) != list(of_async):
        raise ValueError(f"Client has {', '.join(of_both)}; AsyncClient {', '.join(of_async)}")
    for name, method in of_both.items():
        call, of_other = _call(name, method), _call(name, of_async[name])
        if call != of_other:
            raise ValueError(f"{call} of Client is {of_other} of AsyncClient")
        waits = inspect.iscoroutinefunction(of_async[name])
        rows.append(
            (
                f"`{call}`",
                f"`{_returned(method)}`",
                "awaited" if waits else "not awaited",
                first_sentence(method.__doc__ or ""),
            )
        )
    return table(("call", "returns", "of `AsyncClient`", "does"), rows)


def results() -> str:
    """What the methods return, with the attributes of each."""
    rows = [
        (f"`{name}`", first_sentence(kind.__doc__ or ""), ", ".join(f"`{one}`" for one in names))
        for name, kind in _public_classes()
        if not issubclass(kind, StagecoachError) and (names := _data_of(kind))
    ]
    return table(("class", "is", "attributes"), rows)


def errors() -> str:
    """The classes of errors that a caller may see, with their statuses."""
    rows = []
    for name, kind in _public_classes():
        if issubclass(kind, StagecoachError) and kind is not StagecoachError:
            error = kind("")
            code = f"`{_GRPC_CODES[to_status(error).code]}`"
            status = str(error_response(error).status_code)
            rows.append((f"`{name}`", code, status, first_sentence(kind.__doc__ or "")))
    return table(("class", "gRPC", "HTTP", "meaning"), rows)


def _public_classes() -> Iterator[tuple[str, type]]:
    for name in client.__all__:
        kind = getattr(client, name)
        if isinstance(kind, type):
            yield name, kind


def _methods(of: type) -> Iterator[tuple[str, FunctionType]]:
    for name, member in vars(of).items():
        if isinstance(member, FunctionType) and not name.startswith("_"):
            yield name, member


def _call(name: str, method: FunctionType) -> str:
    """A method with its arguments and their defaults, without types."""
    parameters = [
        one.replace(annotation=inspect.Parameter.empty)
        for one in inspect.signature(method).parameters.values()
        if one.name != "self"
    ]
    return name + str(inspect.Signature(parameters))


def _returned(method: FunctionType) -> str:
    kind = inspect.signature(method).return_annotation
    return kind.__name__ if type(kind) is type else _MODULE.sub("", str(kind))


def _data_of(kind: type) -> list[str]:
    """The fields and properties of a result, in the order of its source."""
    if is_typeddict(kind):
        return []
    if issubclass(kind, Enum):
        return [member.name for member in kind]
    if dataclasses.is_dataclass(kind):
        names = [field.name for field in dataclasses.fields(kind)]
    else:
        names = list(inspect.get_annotations(kind))
    return names + [
        name
        for name, member in vars(kind).items()
        if isinstance(member, property) and not name.startswith("_")
    ]
