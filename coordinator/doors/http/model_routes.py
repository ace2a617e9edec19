"""`/v1/models`: the one model that is served, under its names."""

from typing import Literal

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from coordinator.doors.http.door import Door
from coordinator.doors.http.openapi import failures
from coordinator.doors.http.schema.base import ResponseModel


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


def model_routes(door: Door) -> APIRouter:
    """Makes the routes.

    Args:
        door: Holds the engine.
    """
    router = APIRouter(prefix="/v1/models", tags=["models"])

    def card(name: str) -> ModelCard:
        served = door.engine().served_model
        return ModelCard(
            id=name,
            object="model",
            created=door.created_s,
            owned_by="stagecoach",
            max_model_len=served.max_model_len,
        )

    @router.get("", response_model=ModelList, responses=failures(503))
    async def list_models() -> JSONResponse:
        """Lists the model that is served, under each of its names."""
        cards = list(map(card, door.served_names()))
        return JSONResponse(ModelList(object="list", data=cards).model_dump())

    # An id such as `org/name` has a slash in it.
    @router.get(
        "/{model:path}",
        response_model=ModelCard,
        responses=failures(404, 503),
    )
    async def retrieve_model(model: str) -> JSONResponse:
        """Describes the model that is served."""
        door.check_model(model)
        return JSONResponse(card(model).model_dump())

    return router
