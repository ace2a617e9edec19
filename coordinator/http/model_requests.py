"""What is asked of the model: read within the bound that the model's length sets, and checked."""

from typing import TypeVar

from fastapi import Request

from coordinator.core.served_model import ServedModel
from coordinator.http.body import max_body_bytes, read_body
from coordinator.http.body_workers import BodyWorkers
from coordinator.http.field_names import field_names
from coordinator.http.model_routes import check_model
from coordinator.http.schema.base import ModelRequest

Wanted = TypeVar("Wanted", bound=ModelRequest)


async def read_model_request(
    request: Request, kind: type[Wanted], served: ServedModel, bodies: BodyWorkers
) -> Wanted:
    """Reads a request of the served model.

    Args:
        request: Whose body was not touched yet.
        kind: What it must be.
        served: The model of the engine.
        bodies: Validates it.

    Raises:
        ModelNotFoundError: It is for another model.
        StagecoachError: As `read_body`.
    """
    max_bytes = max_body_bytes(served.max_model_len)
    wanted, request.state.ignored = await read_body(request, kind, bodies, max_bytes=max_bytes)
    request.state.field_names = field_names(wanted)
    check_model(wanted.model, served)
    return wanted
