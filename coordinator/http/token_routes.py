"""`/tokenize`, `/detokenize` and `/tokenizer_info`."""

import json
from collections.abc import AsyncIterator, Iterator, Sequence

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from coordinator.http.answer import SpellToken
from coordinator.http.door import Door
from coordinator.http.errors import NotFoundError
from coordinator.http.model_requests import read_model_request
from coordinator.http.openapi import body_of, failures
from coordinator.http.pieces import MAX_WHOLE_IDS, PiecewiseResponse, id_pieces
from coordinator.http.request_specs import chat_prompt, text_prompt
from coordinator.http.schema.tokens import (
    DetokenizeRequest,
    DetokenizeResponse,
    TokenizeRequest,
    TokenizeResponse,
    TokenizerInfo,
)

_SPELLED_AT_ONCE = 1024
"""Tokens, which takes some milliseconds."""


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
    async def tokenize(request: Request) -> PiecewiseResponse:
        """Turns a prompt into token ids, as a completion would."""
        engine = door.engine()
        served = engine.served_model
        wanted = await read_model_request(request, TokenizeRequest, door)
        if wanted.messages is not None:
            token_ids = await engine.tokenize(chat_prompt(wanted, wanted.messages))
        else:
            token_ids = await engine.tokenize(text_prompt(wanted, wanted.prompt or ""))
        spell = engine.token_bytes if wanted.return_token_strs else None
        return PiecewiseResponse(_token_pieces(token_ids, served.max_model_len, spell))

    @router.get("/tokenizer_info", response_model=TokenizerInfo, responses=failures(404, 503))
    async def tokenizer_info() -> JSONResponse:
        """Tells the tokenizer's configuration and chat template, for clients that write prompts."""
        info = door.engine().served_model.tokenizer_info
        if info is None:
            raise NotFoundError("the model has no tokenizer: send token ids")
        return JSONResponse(dict(info))

    @router.post(
        "/detokenize",
        response_model=DetokenizeResponse,
        responses=statuses,
        openapi_extra=body_of(DetokenizeRequest),
    )
    async def detokenize(request: Request) -> JSONResponse:
        """Turns token ids into text."""
        engine = door.engine()
        wanted = await read_model_request(request, DetokenizeRequest, door)
        return JSONResponse({"prompt": await engine.detokenize(wanted.tokens)})

    return router


async def _token_pieces(
    token_ids: Sequence[int], max_model_len: int, spell: SpellToken | None
) -> AsyncIterator[bytes]:
    """A `TokenizeResponse`, in pieces."""
    head = f'{{"count":{len(token_ids)},"max_model_len":{max_model_len},"tokens":'
    if len(token_ids) <= MAX_WHOLE_IDS and spell is None:
        yield f"{head}{''.join(id_pieces(token_ids))}}}".encode()
        return
    yield head.encode()
    for piece in id_pieces(token_ids):
        yield piece.encode()
    if spell is not None:
        yield b',"token_strs":['
        for piece in _text_pieces(token_ids, spell):
            yield piece.encode()
        yield b"]"
    yield b"}"


def _text_pieces(token_ids: Sequence[int], spell: SpellToken) -> Iterator[str]:
    """What each token spells, as the items of a JSON list, some at a time."""
    for start in range(0, len(token_ids), _SPELLED_AT_ONCE):
        some = token_ids[start : start + _SPELLED_AT_ONCE]
        texts = [spell(token_id).decode(errors="replace") for token_id in some]
        items = json.dumps(texts, ensure_ascii=False, separators=(",", ":"))[1:-1]
        yield f",{items}" if start else items
