"""`/api/tags`, `/api/ps`, `/api/show` and `/api/version`: the models as Ollama describes them."""

from collections.abc import AsyncIterator
from hashlib import sha256
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from coordinator.core.catalog import CatalogModel
from coordinator.core.served_model import ServedModel
from coordinator.doors.http.door import Door
from coordinator.doors.http.model_requests import read_model_request
from coordinator.doors.http.ollama_answer import time_text
from coordinator.doors.http.openapi import body_of, failures
from coordinator.doors.http.schema.ollama import OllamaShowRequest
from coordinator.doors.http.schema.ollama_answer import (
    ListedModel,
    ListedModels,
    ModelDetails,
    OllamaErrorResponse,
    OllamaVersion,
    RunningModel,
    RunningModels,
    ShownModel,
)
from stagecoach.contract.cluster_status import ModelStatus

API_VERSION = "0.13.0"
"""The Ollama whose API this is; some clients want one that is not too old."""

_FAMILY = "stagecoach"
"""Stands for the architecture, which only the stages know: what is told of it is told here."""
_NEVER_S = 253402300799
"""The last second that a time of four digits a year can tell."""


def ollama_model_routes(door: Door) -> APIRouter:
    """Makes the routes.

    Args:
        door: Holds the models.
    """
    router = APIRouter(prefix="/api", tags=["ollama"])
    unavailable = failures(503, form=OllamaErrorResponse)

    async def listed() -> AsyncIterator[tuple[ListedModel, CatalogModel]]:
        """Each model under each of its names."""
        for model in door.catalog.models():
            status = await model.engine().status() if model.has_engine else None
            for name in model.names:
                yield (
                    ListedModel(
                        name=name,
                        model=name,
                        modified_at=time_text(door.created_s),
                        size=_num_bytes(status),
                        digest=sha256(model.names[0].encode()).hexdigest(),
                        details=_details(status),
                    ),
                    model,
                )

    @router.get("/tags", response_model=ListedModels, responses=unavailable)
    async def tags() -> JSONResponse:
        """Lists all models, each under each of its names."""
        models = [model async for model, _ in listed()]
        return JSONResponse(ListedModels(models=models).model_dump())

    @router.get("/ps", response_model=RunningModels, responses=unavailable)
    async def ps() -> JSONResponse:
        """Lists the models that are served."""
        models = [
            RunningModel(
                **model.model_dump(),
                expires_at=time_text(_NEVER_S),
                size_vram=model.size,
                context_length=known.max_model_len or 0,
            )
            async for model, known in listed()
            if known.has_engine
        ]
        return JSONResponse(RunningModels(models=models).model_dump())

    @router.post(
        "/show",
        response_model=ShownModel,
        responses=failures(400, 404, 413, 415, 500, 503, form=OllamaErrorResponse),
        openapi_extra=body_of(OllamaShowRequest),
    )
    async def show(request: Request) -> JSONResponse:
        """Describes a model that is served."""
        _, engine = await read_model_request(request, OllamaShowRequest, door)
        served, status = engine.served_model, await engine.status()
        template = (served.tokenizer_info or {}).get("chat_template")
        shown = ShownModel(
            license="",
            modelfile="",
            parameters="",
            template=template if isinstance(template, str) else "",
            details=_details(status),
            model_info=_model_info(served),
            capabilities=["completion", "tools"] if template else ["completion"],
            modified_at=time_text(door.created_s),
        )
        if served.marks_thinking:
            shown.capabilities.append("thinking")
        return JSONResponse(shown.model_dump())

    @router.get("/version", response_model=OllamaVersion)
    async def version() -> JSONResponse:
        """Says which Ollama has this API."""
        return JSONResponse({"version": API_VERSION})

    return router


def _model_info(served: ServedModel) -> dict[str, Any]:
    return {
        "general.architecture": _FAMILY,
        "general.basename": served.model_id,
        f"{_FAMILY}.context_length": served.max_model_len,
        f"{_FAMILY}.vocab_size": served.vocab_size,
    }


def _details(status: ModelStatus | None) -> ModelDetails:
    stages = () if status is None else status.stages
    return ModelDetails(
        parent_model="",
        format="",
        family=_FAMILY,
        families=[_FAMILY],
        parameter_size="",
        quantization_level=next((one.dtype for one in stages if one.dtype), ""),
    )


def _num_bytes(status: ModelStatus | None) -> int:
    """Bytes of the weights of one server of each stage; 0 while none of them is known."""
    if status is None:
        return 0
    return sum({one.index: one.weight_bytes for one in status.stages}.values())
