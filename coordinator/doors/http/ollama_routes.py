"""`/api/chat` and `/api/generate`, as Ollama has them."""

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from coordinator.core.generation_engine import GenerationEngine
from coordinator.core.request_spec import RequestSpec
from coordinator.doors.http.door import Door
from coordinator.doors.http.event_stream import Patience
from coordinator.doors.http.model_requests import read_model_request
from coordinator.doors.http.ollama_answer import OllamaChatAnswer, OllamaGenerateAnswer
from coordinator.doors.http.ollama_specs import ollama_chat_spec, ollama_generate_spec
from coordinator.doors.http.openapi import body_of, failures
from coordinator.doors.http.schema.ollama import (
    OllamaChatRequest,
    OllamaGenerateRequest,
    OllamaRequest,
)
from coordinator.doors.http.schema.ollama_answer import (
    ChatAnswerPart,
    GenerateAnswerPart,
    OllamaErrorResponse,
)
from coordinator.doors.http.sole_answer import SoleWriter, StreamedSoleAnswer, WholeSoleAnswer


def ollama_routes(door: Door, patience: Patience) -> APIRouter:
    """Makes the routes.

    Args:
        door: Holds the models.
        patience: How long the client of a stream is left without a byte.
    """
    router = APIRouter(prefix="/api", tags=["ollama"])
    statuses: dict[int | str, dict[str, Any]] = {
        200: {"content": {"application/x-ndjson": {}}},
        **failures(400, 404, 413, 415, 429, 500, 503, 504, form=OllamaErrorResponse),
    }

    def answer_of(
        engine: GenerationEngine, wanted: OllamaRequest, spec: RequestSpec, writer: SoleWriter
    ) -> Response:
        if wanted.stream is False:
            return WholeSoleAnswer(engine, spec, writer, door.logprobs)
        return StreamedSoleAnswer(engine, spec, writer, patience)

    @router.post(
        "/chat",
        response_model=ChatAnswerPart,
        responses=statuses,
        openapi_extra=body_of(OllamaChatRequest),
    )
    async def chat(request: Request) -> Response:
        """Answers a conversation, as lines of JSON unless `stream` is false."""
        wanted, engine = await read_model_request(request, OllamaChatRequest, door)
        writer = OllamaChatAnswer(engine.served_model.names[0], engine.token_bytes)
        if not wanted.messages:
            return JSONResponse(writer.loaded().model_dump(exclude_unset=True))
        spec = ollama_chat_spec(wanted, f"ollama-{request.state.request_id}")
        return answer_of(engine, wanted, spec, writer)

    @router.post(
        "/generate",
        response_model=GenerateAnswerPart,
        responses=statuses,
        openapi_extra=body_of(OllamaGenerateRequest),
    )
    async def generate(request: Request) -> Response:
        """Answers a text, as lines of JSON unless `stream` is false."""
        wanted, engine = await read_model_request(request, OllamaGenerateRequest, door)
        writer = OllamaGenerateAnswer(engine.served_model.names[0], engine.token_bytes)
        if not wanted.prompt:
            return JSONResponse(writer.loaded().model_dump(exclude_unset=True))
        spec = ollama_generate_spec(wanted, f"ollama-{request.state.request_id}")
        return answer_of(engine, wanted, spec, writer)

    return router
