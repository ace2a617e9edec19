"""`/v1/models`: the models that are served, under their names."""

from typing import Literal

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from coordinator.core.served_model import ServedModel
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
        door: Holds the models.
    """
    router = APIRouter(prefix="/v1/models", tags=["models"])

    def card(name: str, served: ServedModel) -> ModelCard:
        return ModelCard(
            id=name,
            object="model",
            created=door.created_s,
            owned_by="stagecoach",
            max_model_len=served.max_model_len,
        )

    @router.get("", response_model=ModelList, responses=failures(503))
    async def list_models() -> JSONResponse:
        """Lists the models that are served, each under each of its names."""
        models = [engine.served_model for engine in door.catalog.engines()]
        cards = [card(name, served) for served in models for name in served.names]
        return JSONResponse(ModelList(object="list", data=cards).model_dump())

    # An id such as `org/name` has a slash in it.
    @router.get(
        "/{model:path}",
        response_model=ModelCard,
        responses=failures(404, 503),
    )
    async def retrieve_model(model: str) -> JSONResponse:
        """Describes a model that is served."""
        served = door.catalog.engine(model).served_model
        return JSONResponse(card(model, served).model_dump())

    return router
