"""Fields of a request of which nothing was made, named in its answer and once in the log.

The answer to every request that had some, a refusal too, has the header `x-stagecoach-ignored` with
their places, such as `user, messages[1].annotations`; of several messages, the first. So do schemas
of tools that calls are not held to, such as `tools[2].function.parameters`.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import islice
from typing import NamedTuple
from urllib.parse import quote

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from coordinator.core.request_spec import MAX_CHAT_MESSAGES
from coordinator.doors.http.field_names import field_names_of, renamed, without_indices
from coordinator.doors.http.schema.base import MessagePart, RequestModel, Unused

IGNORED_HEADER = "x-stagecoach-ignored"
MAX_NAMED = 64
"""Fields of one request that are named."""
_MAX_LOGGED = 256
"""Different fields that one process logs; a client can make up as many as it likes."""
_MAX_NAME_CHARS = 64

_CHANGES_NOTHING = "requests have the field %s, which changes nothing here"
_IS_NOT_KEPT_TO = "requests have a schema in %s that no grammar can keep calls to"

_log = logging.getLogger(__name__)

IgnoredFields = Mapping[str, str]
"""The place of the first of each kind of field, by the kind, such as `messages[].name`."""


def ignored_fields(request: RequestModel) -> IgnoredFields:
    """Finds the fields of a request that change nothing, or with some models only.

    Args:
        request: Validated.
    """
    places: dict[str, str] = {}
    for kind, place in _unused(request, "", ""):
        places.setdefault(kind, place)
        if len(places) == MAX_NAMED:
            break
    return places


def note_relaxed(scope: Scope, fields: Sequence[str]) -> None:
    """Has the schemas of tools named that calls are not held to.

    Args:
        scope: ASGI's scope of a request; nothing of its answer was sent yet.
        fields: Fields of the contract.
    """
    if fields:
        names = field_names_of(scope)
        places = [renamed(field, names) for field in fields[:MAX_NAMED]]
        scope.setdefault("state", {})["relaxed"] = places


class IgnoredFieldsHeader:
    """ASGI middleware that writes the header for what a route left in `state.ignored`.

    Args:
        app: What it wraps.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._logged: set[str] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, and its answer back with the header."""

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                state = scope.get("state", {})
                ignored: IgnoredFields = state.get("ignored", {})
                relaxed: Sequence[str] = state.get("relaxed", ())
                if ignored or relaxed:
                    self._log_new(ignored, _CHANGES_NOTHING)
                    self._log_new(map(without_indices, relaxed), _IS_NOT_KEPT_TO)
                    places = ", ".join([*ignored.values(), *relaxed])
                    header = (IGNORED_HEADER.encode(), places.encode())
                    message["headers"] = [*message.get("headers", ()), header]
            await send(message)

        await self._app(scope, receive, send_named)

    def _log_new(self, kinds: Iterable[str], what: str) -> None:
        for kind in kinds:
            if kind not in self._logged and len(self._logged) < _MAX_LOGGED:
                self._logged.add(kind)
                _log.info(what, kind)


class KnownField(NamedTuple):
    """A field of a schema."""

    attribute: str
    name: str
    """Name that a client writes."""
    is_unused: bool
    """Nothing is made of it, or only by some models."""
    is_of_use: bool
    """Something may be made of it."""
    is_named: bool
    """The answer says so: its client may have asked for something, or it stands in a message."""


@cache
def known_fields(model: type[RequestModel]) -> tuple[KnownField, ...]:
    """The fields that a schema names."""
    fields = []
    for attribute, info in model.model_fields.items():
        mark = next((one for one in info.metadata if isinstance(one, Unused)), None)
        is_named = mark is None or not mark.asks_for_nothing or issubclass(model, MessagePart)
        is_of_use = mark is None or mark.is_up_to_model
        name = info.alias or attribute
        fields.append(KnownField(attribute, name, mark is not None, is_of_use, is_named))
    return tuple(fields)


def _unused(model: RequestModel, kind: str, place: str) -> Iterator[tuple[str, str]]:
    """Kind and place of every field that changes nothing; `kind` and `place` lead to the model."""
    idle = model.idle_fields()
    for attribute, name, is_unused, _, is_named in known_fields(type(model)):
        if attribute not in model.model_fields_set:
            continue
        value = getattr(model, attribute)
        if is_unused or attribute in idle:
            if is_named and (value is not None or isinstance(model, MessagePart)):
                yield kind + name, place + name
        elif isinstance(value, RequestModel):
            yield from _unused(value, f"{kind}{name}.", f"{place}{name}.")
        elif isinstance(value, list) and value and isinstance(value[0], RequestModel):
            for index, item in enumerate(islice(value, MAX_CHAT_MESSAGES)):
                yield from _unused(item, f"{kind}{name}[].", f"{place}{name}[{index}].")
    for name in model.model_extra or ():
        written = quote(name[:_MAX_NAME_CHARS], errors="replace")
        yield kind + written, place + written
