"""`/tokenize` and `/detokenize`."""

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from coordinator.core.request_spec import TextPrompt
from coordinator.http.door import Door
from coordinator.http.model_requests import read_model_request
from coordinator.http.openapi import body_of, failures
from coordinator.http.request_specs import chat_prompt
from coordinator.http.schema.tokens import (
    DetokenizeRequest,
    DetokenizeResponse,
    TokenizeRequest,
    TokenizeResponse,
)


def token_routes(door: Door) -> APIRouter:
    """Makes the routes.

    Args:
        door: Holds the engine.
    """
    router = APIRouter(tags=["tokens"])
    statuses = failures(400, 404, 413, 415, 500, 503)

    @router.post(
        "/tokenize",
        response_model=TokenizeResponse,
        responses=statuses,
        openapi_extra=body_of(TokenizeRequest),
    )
    async def tokenize(request: Request) -> JSONResponse:
        """Turns a prompt into token ids, as a completion would."""
        engine = door.engine()
        served = engine.served_model
        wanted = await read_model_request(request, TokenizeRequest, served)
        if wanted.messages is not None:
            token_ids = await engine.tokenize(chat_prompt(wanted.messages))
        else:
            token_ids = await engine.tokenize(TextPrompt(text=wanted.prompt or ""))
        answer = TokenizeResponse(
            count=len(token_ids), max_model_len=served.max_model_len, tokens=list(token_ids)
        )
        return JSONResponse(answer.model_dump())

    @router.post(
        "/detokenize",
        response_model=DetokenizeResponse,
        responses=statuses,
        openapi_extra=body_of(DetokenizeRequest),
    )
    async def detokenize(request: Request) -> JSONResponse:
        """Turns token ids into text."""
        engine = door.engine()
        wanted = await read_model_request(request, DetokenizeRequest, engine.served_model)
        return JSONResponse({"prompt": await engine.detokenize(wanted.tokens)})

    return router
