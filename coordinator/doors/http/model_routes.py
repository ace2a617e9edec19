"""`/v1/models`: the models, under their names."""

from typing import Literal

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from coordinator.core.catalog import CatalogModel
from coordinator.doors.http.door import Door
from coordinator.doors.http.openapi import failures
from coordinator.doors.http.schema.base import ResponseModel
from stagecoach.contract.cluster_status import ModelState


class ModelCard(ResponseModel):
    """A model, whether it is served at present or not."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int | None
    """None until it was served once."""
    state: ModelState
    problem: str | None
    """Why it is not served at present; None while it is."""


class ModelList(ResponseModel):
    """All models."""

    object: Literal["list"]
    data: list[ModelCard]


def model_routes(door: Door) -> APIRouter:
    """Makes the routes.

    Args:
        door: Holds the models.
    """
    router = APIRouter(prefix="/v1/models", tags=["models"])

    def card(name: str, model: CatalogModel) -> ModelCard:
        return ModelCard(
            id=name,
            object="model",
            created=door.created_s,
            owned_by="stagecoach",
            max_model_len=model.max_model_len,
            state=model.state,
            problem=model.problem or None,
        )

    @router.get("", response_model=ModelList, responses=failures(503))
    async def list_models() -> JSONResponse:
        """Lists the models with their states, each under each of its names."""
        cards = [card(name, model) for model in door.catalog.models() for name in model.names]
        return JSONResponse(ModelList(object="list", data=cards).model_dump())

    # An id such as `org/name` has a slash in it.
    @router.get(
        "/{model:path}",
        response_model=ModelCard,
        responses=failures(404, 503),
    )
    async def retrieve_model(model: str) -> JSONResponse:
        """Describes a model, also one that is not served at present."""
        return JSONResponse(card(model, door.catalog.model(model)).model_dump())

    return router
