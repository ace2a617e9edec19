"""`/v1/messages` and `/v1/messages/count_tokens`, as Anthropic has them."""

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from coordinator.doors.http.door import Door
from coordinator.doors.http.event_stream import Patience
from coordinator.doors.http.message_answer import MessageAnswer
from coordinator.doors.http.message_specs import message_prompt, message_spec, message_tool_use
from coordinator.doors.http.model_requests import read_model_request
from coordinator.doors.http.openapi import body_of, failures
from coordinator.doors.http.schema.anthropic import CountTokensRequest, MessagesRequest
from coordinator.doors.http.schema.anthropic_answer import (
    AnthropicErrorResponse,
    AssistantAnswer,
    TokenCount,
)
from coordinator.doors.http.sole_answer import StreamedSoleAnswer, WholeSoleAnswer


def message_routes(door: Door, patience: Patience) -> APIRouter:
    """Makes the routes.

    Args:
        door: Holds the models.
        patience: How long the client of a stream is left without a byte.
    """
    router = APIRouter(prefix="/v1/messages", tags=["messages"])
    statuses: dict[int | str, dict[str, Any]] = {
        200: {"content": {"text/event-stream": {}}},
        **failures(400, 404, 413, 415, 429, 500, 503, 504, form=AnthropicErrorResponse),
    }

    @router.post(
        "",
        response_model=AssistantAnswer,
        responses=statuses,
        openapi_extra=body_of(MessagesRequest),
    )
    async def create_message(request: Request) -> Response:
        """Answers a conversation; with `stream`, as server-sent events."""
        wanted, engine = await read_model_request(request, MessagesRequest, door)
        message_id = f"msg_{request.state.request_id}"
        spec = message_spec(wanted, message_id)
        answer = MessageAnswer(
            message_id,
            engine.served_model.names[0],
            shows_thinking=wanted.thinking is None or wanted.thinking.display != "omitted",
        )
        if wanted.stream:
            return StreamedSoleAnswer(engine, spec, answer, patience)
        return WholeSoleAnswer(engine, spec, answer, door.logprobs)

    @router.post(
        "/count_tokens",
        response_model=TokenCount,
        responses=failures(400, 404, 413, 415, 500, 503, form=AnthropicErrorResponse),
        openapi_extra=body_of(CountTokensRequest),
    )
    async def count_tokens(request: Request) -> JSONResponse:
        """Counts the tokens of a conversation, tools and all."""
        wanted, engine = await read_model_request(request, CountTokensRequest, door)
        message_tool_use(wanted)  # refuses what a message with these tools would be refused for
        token_ids = await engine.tokenize(message_prompt(wanted))
        return JSONResponse({"input_tokens": len(token_ids)})

    return router
