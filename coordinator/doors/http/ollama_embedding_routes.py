"""`/api/embed` and the older `/api/embeddings`, as Ollama has them."""

import time
from collections.abc import Iterator, Sequence
from itertools import chain

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from coordinator.doors.embedding import Embedded
from coordinator.doors.http.door import Door
from coordinator.doors.http.embedding_answer import EmbeddingAnswer, written_numbers
from coordinator.doors.http.embedding_routes import MIN_TOKENS_READ
from coordinator.doors.http.model_requests import read_model_request
from coordinator.doors.http.ollama_specs import ollama_embedding_specs
from coordinator.doors.http.openapi import body_of, failures
from coordinator.doors.http.pieces import chain_listed, spliced
from coordinator.doors.http.schema.ollama import OllamaEmbeddingsRequest, OllamaEmbedRequest
from coordinator.doors.http.schema.ollama_answer import (
    OllamaEmbedding,
    OllamaEmbeddings,
    OllamaErrorResponse,
)


def ollama_embedding_routes(door: Door) -> APIRouter:
    """Makes the routes.

    Args:
        door: Holds the models.
    """
    router = APIRouter(prefix="/api", tags=["ollama"])
    statuses = failures(400, 404, 413, 415, 429, 500, 503, 504, form=OllamaErrorResponse)

    @router.post(
        "/embed",
        response_model=OllamaEmbeddings,
        responses=statuses,
        openapi_extra=body_of(OllamaEmbedRequest),
    )
    async def embed(request: Request) -> EmbeddingAnswer:
        """Turns texts into vectors, of the model's last hidden states."""
        wanted, engine = await read_model_request(
            request, OllamaEmbedRequest, door, min_tokens=MIN_TOKENS_READ
        )
        specs = ollama_embedding_specs(
            wanted.texts,
            f"ollama-{request.state.request_id}",
            num_dimensions=wanted.dimensions or None,
            normalizes=True,
        )
        writer = _EmbeddingsWriter(engine.served_model.names[0])
        return EmbeddingAnswer(engine, specs, writer, door.logprobs)

    @router.post(
        "/embeddings",
        response_model=OllamaEmbedding,
        responses=statuses,
        openapi_extra=body_of(OllamaEmbeddingsRequest),
    )
    async def embeddings(request: Request) -> Response:
        """Turns one text into a vector, whose length is as it comes."""
        wanted, engine = await read_model_request(request, OllamaEmbeddingsRequest, door)
        request_id = f"ollama-{request.state.request_id}"
        if not wanted.prompt:
            return JSONResponse(OllamaEmbedding(embedding=[]).model_dump())
        specs = ollama_embedding_specs([wanted.prompt], request_id, normalizes=False)
        return EmbeddingAnswer(engine, specs, _SoleEmbeddingWriter(), door.logprobs)

    return router


class _EmbeddingsWriter:
    """An `EmbeddingWriter` of `/api/embed`.

    Args:
        model: Name of the model that the answer shows.
    """

    def __init__(self, model: str) -> None:
        self._model = model
        self._started_ns = time.perf_counter_ns()

    def pieces(self, embedded: Sequence[Embedded]) -> Iterator[str]:
        """See `EmbeddingWriter.pieces`."""
        answer = OllamaEmbeddings(
            model=self._model,
            embeddings=[],
            total_duration=time.perf_counter_ns() - self._started_ns,
            load_duration=0,
            prompt_eval_count=sum(one.num_prompt_tokens for one in embedded),
        )
        vectors = chain_listed(chain("[", written_numbers(one), "]") for one in embedded)
        return spliced(answer.model_dump_json(), [("embeddings", vectors)])


class _SoleEmbeddingWriter:
    """An `EmbeddingWriter` of `/api/embeddings`."""

    def pieces(self, embedded: Sequence[Embedded]) -> Iterator[str]:
        """See `EmbeddingWriter.pieces`."""
        [one] = embedded
        empty = OllamaEmbedding(embedding=[]).model_dump_json()
        return spliced(empty, [("embedding", written_numbers(one))])
