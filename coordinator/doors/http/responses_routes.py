"""`/v1/responses`: makes responses, and shows, lists and forgets those that are kept."""

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from coordinator.doors.access.callers import current_caller
from coordinator.doors.http.door import Door
from coordinator.doors.http.errors import NotFoundError
from coordinator.doors.http.event_stream import Patience
from coordinator.doors.http.model_requests import read_model_request
from coordinator.doors.http.openapi import body_of, failures
from coordinator.doors.http.pieces import PiecewiseResponse
from coordinator.doors.http.responses_listing import QUERY, listed_page
from coordinator.doors.http.responses_making import making_of
from coordinator.doors.http.responses_specs import idle_reasoning
from coordinator.doors.http.responses_store import KeptResponse
from coordinator.doors.http.responses_stream import StreamedResponse, WholeResponse
from coordinator.doors.http.schema.responses import ResponsesRequest
from coordinator.doors.http.schema.responses_answer import (
    DeletedResponse,
    InputItemList,
    ResponseObject,
)
from stagecoach.contract.errors import InvalidArgumentError

_MAX_SHOWN_CHARS = 64
_IDLE_QUERY = ("include", "include[]", "include_obfuscation", "starting_after")


def responses_routes(door: Door, patience: Patience) -> APIRouter:
    """Makes the routes.

    Args:
        door: Holds the models, and the responses that are kept.
        patience: How long the client of a stream is left without a byte.
    """
    router = APIRouter(prefix="/v1/responses", tags=["responses"])
    statuses: dict[int | str, dict[str, Any]] = {
        200: {"content": {"text/event-stream": {}}},
        **failures(400, 404, 413, 415, 429, 500, 503, 504),
    }

    @router.post(
        "",
        response_model=ResponseObject,
        responses=statuses,
        openapi_extra=body_of(ResponsesRequest),
    )
    async def create_response(request: Request) -> Response:
        """Continues a conversation; with `stream`, as server-sent events."""
        wanted, engine = await read_model_request(request, ResponsesRequest, door)
        variables = engine.served_model.template_variables
        request.state.ignored = {**request.state.ignored, **idle_reasoning(wanted, variables)}
        making = making_of(door, engine, wanted, request.state.request_id)
        request.state.field_names = making.names
        return StreamedResponse(making, patience) if wanted.stream else WholeResponse(making)

    @router.get("/{response_id}", response_model=ResponseObject, responses=failures(400, 404))
    async def retrieve_response(response_id: str, request: Request) -> Response:
        """Shows a response that is kept, without log-probabilities."""
        _refuse_stream(request)
        _name_idle_query(request)
        return PiecewiseResponse([_found(door, response_id).text])

    @router.delete("/{response_id}", response_model=DeletedResponse, responses=failures(404))
    async def delete_response(response_id: str) -> JSONResponse:
        """Forgets a response. What later ones have of it stays with them."""
        door.responses.delete(_found(door, response_id))
        return JSONResponse(DeletedResponse(id=response_id).model_dump())

    @router.post(
        "/{response_id}/cancel", response_model=ResponseObject, responses=failures(400, 404)
    )
    async def cancel_response(response_id: str) -> Response:
        """Refuses: only responses that are made in the background can be cancelled."""
        _found(door, response_id)
        raise InvalidArgumentError(
            "the response was not made in the background, so that it is over; a request that"
            " still runs ends when its connection is closed"
        )

    @router.get(
        "/{response_id}/input_items",
        response_model=InputItemList,
        responses=failures(400, 404),
        openapi_extra={"parameters": QUERY},
    )
    async def list_input_items(response_id: str, request: Request) -> Response:
        """Lists the conversation that a response continues, latest item first."""
        _name_idle_query(request)
        items = _found(door, response_id).turn.input_items
        return PiecewiseResponse(listed_page(items, request.query_params))

    return router


def _found(door: Door, response_id: str) -> KeptResponse:
    kept = door.responses.find(response_id, current_caller.get())
    if kept is None:
        raise NotFoundError(f"no response of the id {response_id[:_MAX_SHOWN_CHARS]!r} is kept")
    return kept


def _name_idle_query(request: Request) -> None:
    """What is kept is shown as it was, so that these of OpenAI's parameters change nothing."""
    asked = [name for name in _IDLE_QUERY if name in request.query_params]
    request.state.ignored = dict(zip(asked, asked, strict=True))


def _refuse_stream(request: Request) -> None:
    if request.query_params.get("stream", "false").lower() not in ("false", "0", ""):
        raise InvalidArgumentError(
            "stream is set, and only a response that is being made is streamed", field="stream"
        )
