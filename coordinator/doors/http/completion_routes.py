"""`/v1/chat/completions` and `/v1/completions`."""

import time
from functools import lru_cache
from typing import Any

from fastapi import APIRouter, Request, Response

from coordinator.core.generation_engine import GenerationEngine
from coordinator.doors.http.answer import Answer, AnswerHead, PromptForm, UsageInStream
from coordinator.doors.http.chat_answer import ChatAnswer
from coordinator.doors.http.completion_answer import CompletionAnswer
from coordinator.doors.http.door import Door
from coordinator.doors.http.event_stream import Patience
from coordinator.doors.http.model_requests import read_model_request
from coordinator.doors.http.openapi import body_of, failures
from coordinator.doors.http.request_specs import Specs, chat_specs, completion_specs
from coordinator.doors.http.responses import StreamedAnswer, WholeAnswer
from coordinator.doors.http.schema.chat import ChatCompletion, ChatCompletionRequest
from coordinator.doors.http.schema.completion import Completion, CompletionRequest
from coordinator.doors.http.schema.sampling import SamplingFields, StreamOptions

_MAX_SPELLINGS = 4096
"""Tokens whose bytes one request keeps; the likely ones come again and again."""


def completion_routes(door: Door, patience: Patience) -> APIRouter:
    """Makes the routes.

    Args:
        door: Holds the models.
        patience: How long the client of a stream is left without a byte.
    """
    router = APIRouter(prefix="/v1", tags=["completions"])
    statuses: dict[int | str, dict[str, Any]] = {
        200: {"content": {"text/event-stream": {}}},
        **failures(400, 404, 413, 415, 429, 500, 503, 504),
    }

    @router.post(
        "/chat/completions",
        response_model=ChatCompletion,
        responses=statuses,
        openapi_extra=body_of(ChatCompletionRequest),
    )
    async def create_chat_completion(request: Request) -> Response:
        """Answers a conversation; with `stream`, as server-sent events of chunks."""
        wanted, engine = await read_model_request(request, ChatCompletionRequest, door)
        head = _head(
            engine,
            wanted,
            f"chatcmpl-{request.state.request_id}",
            with_logprobs=wanted.logprobs or False,
            prompt=PromptForm(num_listed_top=wanted.prompt_logprobs),
        )
        answer = ChatAnswer(head, wanted.metadata)
        return _response(door, engine, wanted, head, chat_specs(wanted, head.id), answer, patience)

    @router.post(
        "/completions",
        response_model=Completion,
        responses=statuses,
        openapi_extra=body_of(CompletionRequest),
    )
    async def create_completion(request: Request) -> Response:
        """Continues prompts; with `stream`, as server-sent events of partial completions."""
        wanted, engine = await read_model_request(request, CompletionRequest, door)
        head = _head(
            engine,
            wanted,
            f"cmpl-{request.state.request_id}",
            with_logprobs=wanted.logprobs is not None,
            prompt=PromptForm(
                is_echoed=wanted.echo or False,
                num_echoed_top=wanted.logprobs if wanted.echo else None,
                num_listed_top=wanted.prompt_logprobs,
            ),
        )
        answer = CompletionAnswer(head)
        specs = completion_specs(wanted, head.id)
        return _response(door, engine, wanted, head, specs, answer, patience)

    return router


def _head(
    engine: GenerationEngine,
    wanted: SamplingFields,
    answer_id: str,
    *,
    with_logprobs: bool,
    prompt: PromptForm,
) -> AnswerHead:
    served = engine.served_model
    with_token_ids = wanted.return_token_ids
    return AnswerHead(
        id=answer_id,
        created_s=int(time.time()),
        model=served.names[0],
        with_token_ids=not served.has_tokenizer if with_token_ids is None else with_token_ids,
        with_logprobs=with_logprobs,
        with_usage=bool(wanted.stream_options and wanted.stream_options.include_usage),
        spell=lru_cache(maxsize=_MAX_SPELLINGS)(engine.token_bytes),
        prompt=prompt,
    )


def _response(
    door: Door,
    engine: GenerationEngine,
    wanted: SamplingFields,
    head: AnswerHead,
    specs: Specs,
    answer: Answer,
    patience: Patience,
) -> Response:
    if not wanted.stream:
        return WholeAnswer(engine, specs, answer, door.logprobs)
    return StreamedAnswer(
        engine,
        specs,
        answer,
        usage=_usage_in_stream(wanted.stream_options),
        request_id=head.id,
        patience=patience,
    )


def _usage_in_stream(options: StreamOptions | None) -> UsageInStream:
    if options is None or not options.include_usage:
        return UsageInStream.NONE
    every_chunk = options.continuous_usage_stats
    return UsageInStream.IN_EVERY_CHUNK if every_chunk else UsageInStream.AT_END
