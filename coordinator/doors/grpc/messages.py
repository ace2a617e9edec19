"""`stagecoach.v1` messages of GenerationService <-> domain types.

Every field of a request is read or refused: one that this version does not know is an error, not
something to ignore. Unset optional fields take the defaults of the domain types.
"""

from array import array
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from coordinator.core.events import (
    Accepted,
    Finished,
    GenerationEvent,
    TokenLogprobs,
    TokensEvent,
)
from coordinator.core.grammar import Grammar, GrammarKind
from coordinator.core.prompt_logprobs import PromptLogprobs
from coordinator.core.request import FinishReason
from coordinator.core.request_spec import (
    ChatPrompt,
    Prompt,
    RequestSpec,
    TextPrompt,
    TokenPrompt,
)
from coordinator.core.sampling_params import SamplingParams, check_num_biases
from coordinator.core.tools import ToolUse
from coordinator.doors.grpc.chat_messages import chat_prompt, chat_tools
from coordinator.doors.grpc.output_messages import output_parts
from coordinator.doors.grpc.unknown_fields import refuse_unknown_fields
from stagecoach.contract.errors import InvalidArgumentError
from stagecoach.contract.float32 import as_meant
from stagecoach.contract.request_timings import RequestTimings, StepTotals
from stagecoach.contract.stage_timings import StageTimings
from stagecoach.v1 import generation_pb2

_FINISH_REASONS: Mapping[FinishReason, generation_pb2.FinishReason.ValueType] = MappingProxyType(
    {
        FinishReason.STOP: generation_pb2.FINISH_REASON_STOP,
        FinishReason.LENGTH: generation_pb2.FINISH_REASON_LENGTH,
        FinishReason.ABORT: generation_pb2.FINISH_REASON_ABORT,
    }
)

_MAX_TUPLE = 4096
"""Token ids that are kept as a tuple; more take a tenth of the memory, and time, as an array."""


def model_name(
    message: generation_pb2.GenerateRequest
    | generation_pb2.EmbedRequest
    | generation_pb2.TokenizeRequest
    | generation_pb2.WatchStepsRequest,
) -> str | None:
    """Reads which model a request names; None when it names none."""
    return message.model if message.HasField("model") else None


def request_spec(message: generation_pb2.GenerateRequest) -> RequestSpec:
    """Reads a request.

    Raises:
        InvalidArgumentError: A field is unknown, missing or out of range; the error names it.
    """
    refuse_unknown_fields(message, "GenerateRequest")
    if message.HasField("max_tokens") and not (
        message.max_tokens or message.HasField("prompt_logprobs")
    ):
        raise InvalidArgumentError(
            "max_tokens is 0, must be at least 1 where log-probabilities of the prompt are not"
            " asked for",
            field="max_tokens",
        )
    wanted = prompt(message.prompt)
    tools = None
    if isinstance(wanted, ChatPrompt):
        tools = chat_tools(message.prompt.chat, wanted.tools)
    divides_output = _divides_output(message, tools)
    return RequestSpec(
        prompt=wanted,
        sampling=_sampling_params(message.sampling),
        max_tokens=message.max_tokens if message.HasField("max_tokens") else None,
        min_tokens=message.min_tokens,
        stop=tuple(message.stop),
        stop_token_ids=tuple(message.stop_token_ids),
        ignore_eos=message.ignore_eos,
        request_id=message.request_id if message.HasField("request_id") else None,
        cache_salt=message.cache_salt if message.HasField("cache_salt") else None,
        logprobs=message.logprobs if message.HasField("logprobs") else None,
        prompt_logprobs=message.prompt_logprobs if message.HasField("prompt_logprobs") else None,
        grammar=_grammar(message.grammar) if message.HasField("grammar") else None,
        divides_output=divides_output,
        tools=tools,
        max_thinking_tokens=_max_thinking_tokens(message, divides_output=divides_output),
    )


def _divides_output(message: generation_pb2.GenerateRequest, tools: ToolUse | None) -> bool:
    if not message.HasField("divide_output"):
        return tools is not None
    if tools is not None and not message.divide_output:
        raise InvalidArgumentError(
            "divide_output is false, but prompt.chat.tools has tools that may be called: their"
            " calls are parts of the output",
            field="divide_output",
            other_field="prompt.chat.tools",
        )
    return message.divide_output


def _max_thinking_tokens(
    message: generation_pb2.GenerateRequest, *, divides_output: bool
) -> int | None:
    if not message.HasField("max_thinking_tokens"):
        return None
    if not divides_output:
        raise InvalidArgumentError(
            "max_thinking_tokens is set, but thinking is told only where the output is divided: set"
            " divide_output",
            field="max_thinking_tokens",
            other_field="divide_output",
        )
    if message.max_thinking_tokens < 1:
        raise InvalidArgumentError(
            "max_thinking_tokens is 0, must be at least 1", field="max_thinking_tokens"
        )
    return message.max_thinking_tokens


def _grammar(message: generation_pb2.Grammar) -> Grammar:
    refuse_unknown_fields(message, "grammar")
    refuse_unknown_fields(message.json_object, "grammar.json_object")
    match message.WhichOneof("form"):
        case "json_schema":
            return Grammar(kind=GrammarKind.JSON_SCHEMA, text=message.json_schema)
        case "json_object":
            return Grammar(kind=GrammarKind.JSON_OBJECT)
        case "regex":
            return Grammar(kind=GrammarKind.REGEX, text=message.regex)
        case "lark":
            return Grammar(kind=GrammarKind.LARK, text=message.lark)
        case None:
            raise InvalidArgumentError("grammar has no form", field="grammar")


def tokenize_prompt(message: generation_pb2.TokenizeRequest) -> Prompt:
    """Reads the prompt to tokenize.

    Raises:
        InvalidArgumentError: There is none, it is empty, or a field is unknown.
    """
    refuse_unknown_fields(message, "TokenizeRequest")
    return prompt(message.prompt)


def prompt(message: generation_pb2.Prompt) -> Prompt:
    """Reads a prompt.

    Raises:
        InvalidArgumentError: There is none, it is empty, or a field is unknown.
    """
    refuse_unknown_fields(message, "prompt")
    match message.WhichOneof("content"):
        case "text":
            return TextPrompt(
                text=message.text,
                add_special_tokens=not message.HasField("add_special_tokens")
                or message.add_special_tokens,
            )
        case "token_ids":
            if message.HasField("add_special_tokens"):
                raise InvalidArgumentError(
                    "prompt.add_special_tokens is set, but token ids are used as they are",
                    field="prompt.add_special_tokens",
                )
            refuse_unknown_fields(message.token_ids, "prompt.token_ids")
            ids = message.token_ids.ids
            is_long = len(ids) > _MAX_TUPLE
            return TokenPrompt(token_ids=array("I", ids) if is_long else tuple(ids))
        case "chat":
            return chat_prompt(message.chat, add_special_tokens=message.add_special_tokens)
        case None:
            raise InvalidArgumentError("prompt is not set", field="prompt")


def _sampling_params(message: generation_pb2.SamplingParams) -> SamplingParams:
    refuse_unknown_fields(message, "sampling")
    check_num_biases(len(message.logit_bias))  # before they are copied one by one
    bias = {token_id: as_meant(value) for token_id, value in message.logit_bias.items()}
    values: dict[str, Any] = {
        field.name: as_meant(value) if isinstance(value, float) else value
        for field, value in message.ListFields()
    }
    return SamplingParams(**{**values, "logit_bias": MappingProxyType(bias)})


def generate_response(event: GenerationEvent) -> generation_pb2.GenerateResponse:
    """Writes an event."""
    match event:
        case TokensEvent():
            chunk = generation_pb2.TokenChunk(
                token_ids=event.token_ids,
                text=event.text,
                logprobs=map(_token_logprobs, event.logprobs),
            )
            parts = output_parts(event.parts)
            if parts:  # most tokens have none, and an empty list takes as long as all the rest
                chunk.parts.extend(parts)
            return generation_pb2.GenerateResponse(tokens=chunk)
        case PromptLogprobs():
            return generation_pb2.GenerateResponse(prompt_logprobs=_prompt_logprobs(event))
        case Accepted():
            accepted = generation_pb2.Accepted(
                request_id=event.request_id,
                num_prompt_tokens=event.num_prompt_tokens,
                relaxed_fields=event.relaxed_fields,
            )
            return generation_pb2.GenerateResponse(accepted=accepted)
        case Finished():
            finished = generation_pb2.Finished(
                finish_reason=_finish_reason(event),
                text=event.text,
                num_prompt_tokens=event.num_prompt_tokens,
                num_completion_tokens=event.num_completion_tokens,
                num_cached_tokens=event.num_cached_tokens,
                timings=_request_timings(event.timings),
                parts=output_parts(event.parts),
                num_reasoning_tokens=event.num_reasoning_tokens,
            )
            return generation_pb2.GenerateResponse(finished=finished)


def _finish_reason(event: Finished) -> generation_pb2.FinishReason.ValueType:
    if event.finish_reason is FinishReason.STOP and event.num_calls:
        return generation_pb2.FINISH_REASON_TOOL_CALLS
    return _FINISH_REASONS[event.finish_reason]


def _token_logprobs(logprobs: TokenLogprobs) -> generation_pb2.TokenLogprobs:
    return generation_pb2.TokenLogprobs(
        logprob=logprobs.logprob,
        top_token_ids=[token_id for token_id, _ in logprobs.top],
        top_logprobs=[logprob for _, logprob in logprobs.top],
    )


def _prompt_logprobs(logprobs: PromptLogprobs) -> generation_pb2.PromptLogprobs:
    return generation_pb2.PromptLogprobs(
        start=logprobs.start,
        logprobs=logprobs.logprobs,
        ranks=logprobs.ranks,
        top_token_ids=logprobs.top_token_ids,
        top_logprobs=logprobs.top_logprobs,
    )


def _request_timings(timings: RequestTimings) -> generation_pb2.RequestTimings:
    return generation_pb2.RequestTimings(
        queue_ns=timings.queue_ns,
        time_to_first_token_ns=timings.time_to_first_token_ns,
        total_ns=timings.total_ns,
        num_steps=timings.num_steps,
        schedule_ns=timings.schedule_ns,
        sample_ns=timings.sample_ns,
        detokenize_ns=timings.detokenize_ns,
        stages=map(_stage_totals, timings.stages),
        step_ns=timings.step_ns,
        num_preemptions=timings.num_preemptions,
        num_replays=timings.num_replays,
        prefill=None if timings.prefill is None else _step_totals(timings.prefill),
    )


def _step_totals(totals: StepTotals) -> generation_pb2.StepTimeTotals:
    return generation_pb2.StepTimeTotals(
        num_steps=totals.num_steps,
        schedule_ns=totals.schedule_ns,
        sample_ns=totals.sample_ns,
        detokenize_ns=totals.detokenize_ns,
        stages=map(_stage_totals, totals.stages),
        step_ns=totals.step_ns,
    )


def _stage_totals(totals: StageTimings[int]) -> generation_pb2.StageTimeTotals:
    return generation_pb2.StageTimeTotals(
        queue_ns=totals.queue_ns,
        compute_ns=totals.compute_ns,
        serialize_ns=totals.serialize_ns,
        wire_ns=totals.wire_ns,
    )
