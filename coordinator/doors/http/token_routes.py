"""`/tokenize`, `/detokenize` and `/tokenizer_info`."""

from collections.abc import Iterator, Sequence

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from coordinator.doors.http.answer import SpellToken
from coordinator.doors.http.door import Door
from coordinator.doors.http.errors import NotFoundError
from coordinator.doors.http.model_requests import read_model_request
from coordinator.doors.http.openapi import body_of, failures
from coordinator.doors.http.pieces import PiecewiseResponse, listed, spliced
from coordinator.doors.http.request_specs import chat_prompt, text_prompt
from coordinator.doors.http.schema.tokens import (
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
        door: Holds the models.
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
        wanted, engine = await read_model_request(request, TokenizeRequest, door)
        if wanted.messages is not None:
            token_ids = await engine.tokenize(chat_prompt(wanted, wanted.messages))
        else:
            token_ids = await engine.tokenize(text_prompt(wanted, wanted.prompt or ""))
        spell = engine.token_bytes if wanted.return_token_strs else None
        max_model_len = engine.served_model.max_model_len
        return PiecewiseResponse(_token_pieces(token_ids, max_model_len, spell))

    @router.get("/tokenizer_info", response_model=TokenizerInfo, responses=failures(400, 404, 503))
    async def tokenizer_info(model: str | None = None) -> JSONResponse:
        """Tells the tokenizer's configuration and chat template, for clients that write prompts.

        `model` is a name of the model, needed only where several are served.
        """
        info = door.catalog.engine(model or None).served_model.tokenizer_info
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
        wanted, engine = await read_model_request(request, DetokenizeRequest, door)
        return JSONResponse({"prompt": await engine.detokenize(wanted.tokens)})

    return router


def _token_pieces(
    token_ids: Sequence[int], max_model_len: int, spell: SpellToken | None
) -> Iterator[str]:
    """A `TokenizeResponse`, in pieces."""
    answer = TokenizeResponse(count=len(token_ids), max_model_len=max_model_len, tokens=[])
    lists = [("tokens", listed(token_ids, list, num_items=4096))]
    if spell is not None:
        answer.token_strs = []

        def texts(part: Sequence[int]) -> list[str]:
            return [spell(token_id).decode(errors="replace") for token_id in part]

        lists.append(("token_strs", listed(token_ids, texts, num_items=_SPELLED_AT_ONCE)))
    return spliced(answer.model_dump_json(exclude_unset=True), lists)
