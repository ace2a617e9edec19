"""What is asked of the model: read within the bound that the model's length sets, and checked."""

from typing import TypeVar

from fastapi import Request

from coordinator.doors.http.body import read_body
from coordinator.doors.http.door import Door
from coordinator.doors.http.field_names import field_names
from coordinator.doors.http.schema.base import ModelRequest
from stagecoach.contract.limits import max_request_bytes

NAME = "messages[].name"
"""The kind of field, among those that change nothing, of which some models make something."""

Wanted = TypeVar("Wanted", bound=ModelRequest)


async def read_model_request(request: Request, kind: type[Wanted], door: Door) -> Wanted:
    """Reads a request of the served model.

    Args:
        request: Whose body was not touched yet.
        kind: What it must be.
        door: Holds the engine.

    Raises:
        ModelNotFoundError: It is for another model.
        UnavailableError: There is no engine yet.
        StagecoachError: As `read_body`.
    """
    max_bytes = max_request_bytes(door.engine().served_model.max_model_len)
    wanted, ignored = await read_body(request, kind, door.bodies, max_bytes=max_bytes)
    request.state.field_names = field_names(wanted)
    request.state.ignored = ignored
    door.check_model(wanted.model)
    if NAME in ignored and await door.model_reads_names():
        request.state.ignored = {kind: place for kind, place in ignored.items() if kind != NAME}
    return wanted
