"""The served `/openapi.json`: bodies that the routes read themselves are described here."""

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from coordinator.doors.http.authentication import OPEN_PATHS
from coordinator.doors.http.error_forms import ERROR_MODELS, error_model
from coordinator.doors.http.errors import ErrorResponse
from coordinator.doors.http.schema.anthropic import CountTokensRequest, MessagesRequest
from coordinator.doors.http.schema.chat import ChatCompletionRequest
from coordinator.doors.http.schema.completion import CompletionRequest
from coordinator.doors.http.schema.embedding import EmbeddingRequest
from coordinator.doors.http.schema.ollama import (
    OllamaChatRequest,
    OllamaEmbeddingsRequest,
    OllamaEmbedRequest,
    OllamaGenerateRequest,
    OllamaShowRequest,
)
from coordinator.doors.http.schema.responses import ResponsesRequest
from coordinator.doors.http.schema.tokens import DetokenizeRequest, TokenizeRequest

_REQUESTS: Sequence[type[BaseModel]] = (
    ChatCompletionRequest,
    CompletionRequest,
    EmbeddingRequest,
    MessagesRequest,
    CountTokensRequest,
    OllamaChatRequest,
    OllamaEmbeddingsRequest,
    OllamaEmbedRequest,
    OllamaGenerateRequest,
    OllamaShowRequest,
    ResponsesRequest,
    TokenizeRequest,
    DetokenizeRequest,
)
_REFERENCE = "#/components/schemas/{model}"
_API_KEY = "api_key"


def failures(
    *statuses: int, form: type[BaseModel] = ErrorResponse
) -> dict[int | str, dict[str, Any]]:
    """Describes the errors of a route.

    Args:
        *statuses: HTTP statuses that it may answer with.
        form: What an error is written as.
    """
    # By reference: of a model FastAPI would make a validator for each status of each route.
    schema = {"$ref": _REFERENCE.format(model=form.__name__)}
    return {status: {"content": {"application/json": {"schema": schema}}} for status in statuses}


def body_of(model: type[BaseModel]) -> dict[str, Any]:
    """Describes the body of a route.

    Args:
        model: What the body must be.
    """
    schema = {"$ref": _REFERENCE.format(model=model.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def describe(app: FastAPI, *, asks_for_keys: bool) -> None:
    """Lets an application serve the description of all its routes.

    Args:
        app: With all its routes.
        asks_for_keys: Whether `Authentication` wraps it.
    """

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(
                title=app.title,
                version=app.version,
                description=app.description,
                routes=app.routes,
            )
            _, bodies = models_json_schema(
                [
                    *((model, "validation") for model in _REQUESTS),
                    *((model, "serialization") for model in ERROR_MODELS),
                ],
                ref_template=_REFERENCE,
            )
            document["components"]["schemas"].update(bodies["$defs"])
            if asks_for_keys:
                _require_key(document)
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's own way to extend it


def _require_key(document: dict[str, Any]) -> None:
    """Says that every route but the open ones takes an API key, and what it answers without."""
    document["components"]["securitySchemes"] = {_API_KEY: {"type": "http", "scheme": "bearer"}}
    for path, operations in document["paths"].items():
        if path not in OPEN_PATHS:
            for operation in operations.values():
                operation["security"] = [{_API_KEY: []}]
                operation["responses"]["401"] = {
                    "description": "Unauthorized",
                    "content": {"application/json": {"schema": _error_schema(path)}},
                }


def _error_schema(path: str) -> dict[str, str]:
    return {"$ref": _REFERENCE.format(model=error_model(path).__name__)}
