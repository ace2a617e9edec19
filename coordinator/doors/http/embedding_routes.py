"""`/v1/embeddings`."""

from fastapi import APIRouter, Request

from coordinator.doors.http.door import Door
from coordinator.doors.http.embedding_answer import EmbeddingAnswer, EmbeddingListWriter
from coordinator.doors.http.model_requests import read_model_request
from coordinator.doors.http.openapi import body_of, failures
from coordinator.doors.http.request_specs import embedding_specs
from coordinator.doors.http.schema.embedding import EmbeddingList, EmbeddingRequest

MIN_TOKENS_READ = 100_000
"""Tokens of all texts together for which there is room in a body, whatever one text may have."""


def embedding_routes(door: Door) -> APIRouter:
    """Makes the routes.

    Args:
        door: Holds the models.
    """
    router = APIRouter(prefix="/v1", tags=["embeddings"])

    @router.post(
        "/embeddings",
        response_model=EmbeddingList,
        responses=failures(400, 404, 413, 415, 429, 500, 503, 504),
        openapi_extra=body_of(EmbeddingRequest),
    )
    async def create_embeddings(request: Request) -> EmbeddingAnswer:
        """Turns texts into vectors, of the model's last hidden states."""
        wanted, engine = await read_model_request(
            request, EmbeddingRequest, door, min_tokens=MIN_TOKENS_READ
        )
        return EmbeddingAnswer(
            engine,
            embedding_specs(wanted, f"embd-{request.state.request_id}"),
            EmbeddingListWriter(
                engine.served_model.names[0], in_base64=wanted.encoding_format == "base64"
            ),
            door.logprobs,
        )

    return router
