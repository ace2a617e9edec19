"""`/v1/models`: the one model that is served."""

from typing import Literal

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from coordinator.core.served_model import ServedModel
from coordinator.http.door import Door
from coordinator.http.errors import ModelNotFoundError
from coordinator.http.openapi import failures
from coordinator.http.schema.base import ResponseModel


class ModelCard(ResponseModel):
    """A model that is served."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int


class ModelList(ResponseModel):
    """All models that are served."""

    object: Literal["list"]
    data: list[ModelCard]


def check_model(wanted: str | None, served: ServedModel) -> None:
    """Refuses a request for another model.

    Args:
        wanted: What the request names; None takes what is served.
        served: The model of the engine.

    Raises:
        ModelNotFoundError: It is another one.
    """
    if wanted is not None and wanted != served.model_id:
        raise ModelNotFoundError(
            f"the model {wanted[:128]!r} is not served here; {served.model_id!r} is", field="model"
        )


def model_routes(door: Door) -> APIRouter:
    """Makes the routes.

    Args:
        door: Holds the engine.
    """
    router = APIRouter(prefix="/v1/models", tags=["models"])

    def card() -> ModelCard:
        served = door.engine().served_model
        return ModelCard(
            id=served.model_id,
            object="model",
            created=door.created_s,
            owned_by="stagecoach",
            max_model_len=served.max_model_len,
        )

    @router.get("", response_model=ModelList, responses=failures(503))
    async def list_models() -> JSONResponse:
        """Lists the model that is served."""
        return JSONResponse(ModelList(object="list", data=[card()]).model_dump())

    # An id such as `org/name` has a slash in it.
    @router.get(
        "/{model:path}",
        response_model=ModelCard,
        responses=failures(404, 503),
    )
    async def retrieve_model(model: str) -> JSONResponse:
        """Describes the model that is served."""
        check_model(model, door.engine().served_model)
        return JSONResponse(card().model_dump())

    return router
