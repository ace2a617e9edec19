"""Typed errors on their way between two processes of one program, as JSON.

Between programs they travel as statuses; see `stagecoach.contract.status`. Standard library only.
"""

import json
from collections.abc import Iterator

from stagecoach.contract.errors import StagecoachError


def to_json(error: StagecoachError) -> bytes:
    """Writes an error."""
    facts = {"reason": error.reason, "message": error.message, "details": error.details}
    return json.dumps(facts).encode()


def from_json(data: bytes) -> StagecoachError:
    """Reads what `to_json` wrote; the class is the one that owns the reason."""
    facts = json.loads(data)
    error = _BY_REASON[facts["reason"]](facts["message"])
    error.details.update(facts["details"])
    return error


def _all_classes(base: type[StagecoachError]) -> Iterator[type[StagecoachError]]:
    yield base
    for kind in base.__subclasses__():
        yield from _all_classes(kind)


# Of classes with the same reason, the one that named it comes first.
_BY_REASON: dict[str, type[StagecoachError]] = {}
for _kind in _all_classes(StagecoachError):
    if _kind is not StagecoachError and "reason" in vars(_kind):
        _BY_REASON.setdefault(_kind.reason, _kind)
