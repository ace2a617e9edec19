"""What is asked of a model: read within the bound that the model's length sets, and checked."""

from typing import Generic, NamedTuple, TypeVar

from fastapi import Request

from coordinator.core.generation_engine import GenerationEngine
from coordinator.doors.http.body import read_body
from coordinator.doors.http.door import Door
from coordinator.doors.http.field_names import field_names
from coordinator.doors.http.schema.base import ModelRequest
from stagecoach.contract.limits import max_request_bytes

NAME = "messages[].name"
"""The kind of field, among those that change nothing, of which some models make something."""

Wanted = TypeVar("Wanted", bound=ModelRequest)


class Asked(NamedTuple, Generic[Wanted]):
    """What is asked, and of which model."""

    wanted: Wanted
    engine: GenerationEngine


async def read_model_request(request: Request, kind: type[Wanted], door: Door) -> Asked[Wanted]:
    """Reads a request of a served model.

    Args:
        request: Whose body was not touched yet.
        kind: What it must be.
        door: Holds the models.

    Raises:
        ModelNotFoundError: It is for a model that is not served.
        InvalidArgumentError: It names no model, and several are served.
        UnavailableError: There is no engine yet.
        StagecoachError: As `read_body`.
    """
    models = [engine.served_model for engine in door.catalog.engines()]
    max_bytes = max_request_bytes(max(model.max_model_len for model in models))
    wanted, ignored = await read_body(request, kind, door.bodies, max_bytes=max_bytes)
    request.state.field_names = field_names(wanted)
    request.state.ignored = ignored
    engine = door.catalog.engine(wanted.model)
    if NAME in ignored and await door.model_reads_names(engine):
        request.state.ignored = {kind: place for kind, place in ignored.items() if kind != NAME}
    return Asked(wanted, engine)
