"""`/v1/models`: the models, under their names, as OpenAI or Anthropic lists them.

Both have these paths. Clients of Anthropic say so by the header `anthropic-version`.
"""

from datetime import UTC, datetime
from typing import Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from coordinator.core.catalog import CatalogModel
from coordinator.doors.http.door import Door
from coordinator.doors.http.error_forms import is_for_anthropic
from coordinator.doors.http.openapi import failures
from coordinator.doors.http.schema.anthropic_answer import AnthropicModel, AnthropicModelList
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

    def anthropic(name: str, model: CatalogModel) -> AnthropicModel:
        return AnthropicModel(
            type="model",
            id=name,
            display_name=name,
            created_at=datetime.fromtimestamp(door.created_s, UTC).isoformat(),
            lifecycle="active",
            max_input_tokens=model.max_model_len,
            max_tokens=model.max_model_len,
        )

    @router.get("", response_model=ModelList | AnthropicModelList, responses=failures(503))
    async def list_models(request: Request) -> JSONResponse:
        """Lists the models with their states, each under each of its names.

        With the header `anthropic-version` they are listed as Anthropic does, all on one page.
        """
        named = [(name, model) for model in door.catalog.models() for name in model.names]
        listed: ModelList | AnthropicModelList
        if is_for_anthropic(request.scope):
            listed = AnthropicModelList(
                data=[anthropic(*one) for one in named],
                has_more=False,
                first_id=next((name for name, _ in named), None),
                last_id=next((name for name, _ in reversed(named)), None),
            )
        else:
            listed = ModelList(object="list", data=[card(*one) for one in named])
        return JSONResponse(listed.model_dump())

    # An id such as `org/name` has a slash in it.
    @router.get(
        "/{model:path}",
        response_model=ModelCard | AnthropicModel,
        responses=failures(404, 503),
    )
    async def retrieve_model(request: Request, model: str) -> JSONResponse:
        """Describes a model, also one that is not served at present."""
        describe = anthropic if is_for_anthropic(request.scope) else card
        return JSONResponse(describe(model, door.catalog.model(model)).model_dump())

    return router
