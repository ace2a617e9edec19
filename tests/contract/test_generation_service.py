"""GenerationService on a real socket: every field, every error, every way that a call ends."""

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from coordinator.core.events import TokenLogprobs
from coordinator.core.grammar import Grammar, GrammarKind
from coordinator.core.request_spec import ChatMessage, ChatPrompt, TextPrompt, TokenPrompt
from coordinator.core.sampling_params import SamplingParams
from coordinator.doors.grpc.server import GenerationServer, max_calls_of_caller
from stagecoach.contract import errors
from stagecoach.contract.address import Address
from stagecoach.contract.limits import max_request_bytes
from stagecoach.contract.status import from_rpc_error
from stagecoach.v1 import generation_pb2, generation_pb2_grpc, stage_pb2
from tests.contract.echo_engine import (
    MAX_MODEL_LEN,
    MAX_NUM_WAITING,
    TIMINGS,
    EchoEngine,
    Preparing,
    bound,
    serving,
)

if TYPE_CHECKING:
    from stagecoach.v1.generation_pb2_grpc import GenerationServiceAsyncStub as Stub

Request = generation_pb2.GenerateRequest
open_stub = generation_pb2_grpc.GenerationServiceStub

DEADLINE_S = 90.0

FIELD_100 = b"\xa0\x06\x01"
"""A varint that no message of ours has."""

ERROR_TABLE = [
    (errors.InvalidArgumentError("bad", field="stop"), grpc.StatusCode.INVALID_ARGUMENT),
    (errors.ModelNotFoundError("another", field="model"), grpc.StatusCode.NOT_FOUND),
    (errors.ContextLengthExceededError("long", limit=5), grpc.StatusCode.OUT_OF_RANGE),
    (errors.QueueFullError("full"), grpc.StatusCode.RESOURCE_EXHAUSTED),
    (errors.UnavailableError("draining"), grpc.StatusCode.UNAVAILABLE),
    (errors.DeadlineExceededError("late"), grpc.StatusCode.DEADLINE_EXCEEDED),
    (errors.StaleStateError("gap"), grpc.StatusCode.ABORTED),
    (errors.IncompatibleError("other model"), grpc.StatusCode.FAILED_PRECONDITION),
    (errors.RequestAbortedError("ended"), grpc.StatusCode.CANCELLED),
    (errors.InternalError("NaN logits"), grpc.StatusCode.INTERNAL),
]


@pytest.fixture
def engine() -> EchoEngine:
    return EchoEngine()


@pytest.fixture
async def channel(engine: EchoEngine) -> AsyncIterator[grpc.aio.Channel]:
    async with serving(engine) as address, grpc.aio.insecure_channel(address) as channel:
        yield channel


@pytest.fixture
def stub(channel: grpc.aio.Channel) -> "Stub":
    return open_stub(channel)


def text_request(text: str = "abc", **fields: object) -> Request:
    return Request(prompt=generation_pb2.Prompt(text=text), **fields)  # type: ignore[arg-type]


async def refusal(stub: "Stub", request: Request) -> errors.StagecoachError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await asyncio.wait_for(collect(stub, request), DEADLINE_S)
    return from_rpc_error(caught.value)


async def collect(stub: "Stub", request: Request) -> list[generation_pb2.GenerateResponse]:
    return [event async for event in stub.Generate(request, timeout=DEADLINE_S)]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while True:
            if condition():
                return
            await asyncio.sleep(0.005)


async def test_events_come_in_order_and_end_with_one_finished(stub: "Stub") -> None:
    events = await collect(stub, text_request("abc", max_tokens=4, request_id="mine"))
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds == ["accepted", *["tokens"] * 4, "finished"]
    assert events[0].accepted == generation_pb2.Accepted(request_id="mine", num_prompt_tokens=3)
    assert [list(event.tokens.token_ids) for event in events[1:5]] == [[97], [98], [99], [97]]
    finished = events[-1].finished
    assert finished.finish_reason == generation_pb2.FINISH_REASON_LENGTH
    assert (finished.num_prompt_tokens, finished.num_completion_tokens) == (3, 4)
    assert finished.num_cached_tokens == 2


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            generation_pb2.Grammar(json_schema="{}"),
            Grammar(kind=GrammarKind.JSON_SCHEMA, text="{}"),
        ),
        (
            generation_pb2.Grammar(json_object=generation_pb2.JsonObject()),
            Grammar(kind=GrammarKind.JSON_OBJECT),
        ),
        (
            generation_pb2.Grammar(lark="start: /a/"),
            Grammar(kind=GrammarKind.LARK, text="start: /a/"),
        ),
    ],
)
async def test_every_form_of_grammar_reaches_the_engine(
    stub: "Stub", engine: EchoEngine, message: generation_pb2.Grammar, expected: Grammar
) -> None:
    await collect(stub, text_request(max_tokens=1, grammar=message))
    assert engine.specs[0].grammar == expected


async def test_logprobs_arrive_whole(stub: "Stub", engine: EchoEngine) -> None:
    engine.logprobs = TokenLogprobs(-0.25, ((7, -0.125), (8, -2.5)))
    events = await collect(stub, text_request(max_tokens=2, logprobs=2))
    for event in events[1:-1]:
        (logprobs,) = event.tokens.logprobs
        assert logprobs.logprob == -0.25
        assert list(logprobs.top_token_ids) == [7, 8]
        assert list(logprobs.top_logprobs) == [-0.125, -2.5]


async def test_timings_arrive_whole(stub: "Stub") -> None:
    timings = (await collect(stub, text_request(max_tokens=1)))[-1].finished.timings
    assert [stage.compute_ns for stage in timings.stages] == [40_000_000, 50_000_000]
    for field in ("queue_ns", "time_to_first_token_ns", "total_ns", "num_steps", "schedule_ns"):
        assert getattr(timings, field) == getattr(TIMINGS, field)
    for field in ("sample_ns", "detokenize_ns", "step_ns", "num_preemptions", "num_replays"):
        assert getattr(timings, field) == getattr(TIMINGS, field)


async def test_text_that_was_held_back_comes_with_the_end(stub: "Stub") -> None:
    events = await collect(stub, text_request("é", max_tokens=3))
    texts = [event.tokens.text for event in events[1:-1]]
    assert texts == ["", "é", ""]
    assert events[-1].finished.text == "\N{REPLACEMENT CHARACTER}"


async def test_unset_fields_take_their_defaults(stub: "Stub", engine: EchoEngine) -> None:
    await collect(stub, text_request("x\0"))
    (spec,) = engine.specs
    assert spec.prompt == TextPrompt(text="x\0")
    assert spec.sampling == SamplingParams()
    assert (spec.max_tokens, spec.min_tokens) == (None, 0)
    assert (spec.stop, spec.stop_token_ids, spec.ignore_eos) == ((), (), False)
    assert (spec.request_id, spec.cache_salt) == (None, None)
    assert (spec.logprobs, spec.grammar) == (None, None)


async def test_every_field_reaches_the_engine(stub: "Stub", engine: EchoEngine) -> None:
    sampling = generation_pb2.SamplingParams(
        temperature=0.5,
        top_p=0.25,
        top_k=7,
        min_p=0.125,
        repetition_penalty=1.5,
        presence_penalty=-1.0,
        frequency_penalty=2.0,
        logit_bias={3: -100.0},
        seed=2**64 - 1,
    )
    request = text_request(
        max_tokens=2,
        min_tokens=1,
        sampling=sampling,
        stop=["a", "b"],
        stop_token_ids=[5, 6],
        ignore_eos=True,
        request_id="r",
        cache_salt="s",
        logprobs=0,
        grammar=generation_pb2.Grammar(regex="a+"),
    )
    await collect(stub, request)
    (spec,) = engine.specs
    assert spec.sampling == SamplingParams(
        temperature=0.5,
        top_p=0.25,
        top_k=7,
        min_p=0.125,
        repetition_penalty=1.5,
        presence_penalty=-1.0,
        frequency_penalty=2.0,
        logit_bias={3: -100.0},
        seed=2**64 - 1,
    )
    assert (spec.max_tokens, spec.min_tokens) == (2, 1)
    assert (spec.stop, spec.stop_token_ids) == (("a", "b"), (5, 6))
    assert (spec.ignore_eos, spec.request_id, spec.cache_salt) == (True, "r", "s")
    assert spec.logprobs == 0
    assert spec.grammar == Grammar(kind=GrammarKind.REGEX, text="a+")


async def test_all_kinds_of_prompt_are_read(stub: "Stub", engine: EchoEngine) -> None:
    ids = generation_pb2.Prompt(token_ids=stage_pb2.TokenIds(ids=[1, 2]))
    message = generation_pb2.ChatMessage(role="user", content="hi", name="Ada")
    chat = generation_pb2.Prompt(chat=generation_pb2.Chat(messages=[message]))
    for prompt in (ids, chat):
        await collect(stub, Request(prompt=prompt, max_tokens=1))
    assert [spec.prompt for spec in engine.specs] == [
        TokenPrompt(token_ids=(1, 2)),
        ChatPrompt(messages=(ChatMessage(role="user", content="hi", name="Ada"),)),
    ]


async def test_the_role_developer_is_system(stub: "Stub", engine: EchoEngine) -> None:
    await collect(stub, chat_request("developer", "user"))
    (spec,) = engine.specs
    assert isinstance(spec.prompt, ChatPrompt)
    assert [message.role for message in spec.prompt.messages] == ["system", "user"]


def sampling_request(**fields: object) -> Request:
    return text_request(sampling=generation_pb2.SamplingParams(**fields))  # type: ignore[arg-type]


def chat_request(*roles: str) -> Request:
    messages = [generation_pb2.ChatMessage(role=role, content="x") for role in roles]
    return Request(prompt=generation_pb2.Prompt(chat=generation_pb2.Chat(messages=messages)))


@pytest.mark.parametrize(
    ("request_message", "field"),
    [
        (Request(), "prompt"),
        (Request(prompt=generation_pb2.Prompt()), "prompt"),
        (text_request(""), "prompt.text"),
        (
            Request(prompt=generation_pb2.Prompt(token_ids=stage_pb2.TokenIds())),
            "prompt.token_ids",
        ),
        (
            Request(prompt=generation_pb2.Prompt(token_ids=stage_pb2.TokenIds(ids=[256]))),
            "prompt.token_ids",
        ),
        (chat_request(), "prompt.chat.messages"),
        (chat_request("user", "wizard"), "prompt.chat.messages"),
        (text_request(max_tokens=0), "max_tokens"),
        (text_request(max_tokens=2, min_tokens=3), "min_tokens"),
        (text_request(stop=["x"] * 17), "stop"),
        (text_request(stop=["x", ""]), "stop"),
        (text_request(stop_token_ids=range(65)), "stop_token_ids"),
        (text_request(request_id="x" * 129), "request_id"),
        (text_request(request_id=""), "request_id"),
        (text_request(cache_salt="x" * 129), "cache_salt"),
        (text_request(cache_salt=""), "cache_salt"),
        (text_request(logprobs=21), "logprobs"),
        (text_request(grammar=generation_pb2.Grammar()), "grammar"),
        (text_request(grammar=generation_pb2.Grammar(regex="")), "grammar.regex"),
        (text_request(grammar=generation_pb2.Grammar(json_schema="{")), "grammar.json_schema"),
        (sampling_request(temperature=math.nan), "sampling.temperature"),
        (sampling_request(temperature=math.inf), "sampling.temperature"),
        (sampling_request(temperature=-1.0), "sampling.temperature"),
        (sampling_request(top_p=0.0), "sampling.top_p"),
        (sampling_request(top_p=1.5), "sampling.top_p"),
        (sampling_request(min_p=1.5), "sampling.min_p"),
        (sampling_request(repetition_penalty=0.0), "sampling.repetition_penalty"),
        (sampling_request(presence_penalty=2.5), "sampling.presence_penalty"),
        (sampling_request(frequency_penalty=-2.5), "sampling.frequency_penalty"),
        (sampling_request(logit_bias={1: 101.0}), "sampling.logit_bias"),
    ],
)
async def test_bad_fields_are_named_and_reach_no_engine(
    stub: "Stub", engine: EchoEngine, request_message: Request, field: str
) -> None:
    error = await refusal(stub, request_message)
    assert isinstance(error, errors.InvalidArgumentError)
    assert error.field == field
    assert engine.specs == []


@pytest.mark.parametrize(
    ("place", "name"),
    [
        (lambda request: request, "GenerateRequest"),
        (lambda request: request.sampling, "sampling"),
        (lambda request: request.prompt, "prompt"),
        (lambda request: request.prompt.token_ids, "prompt.token_ids"),
        (lambda request: request.prompt.chat, "prompt.chat"),
        (lambda request: request.prompt.chat.messages.add(), "prompt.chat.messages[0]"),
        (
            lambda request: request.prompt.chat.messages.add(role="assistant").tool_calls.add(),
            "prompt.chat.messages[0].tool_calls[0]",
        ),
        (lambda request: request.prompt.chat.tools.add(), "prompt.chat.tools[0]"),
        (lambda request: request.prompt.chat.tool_choice, "prompt.chat.tool_choice"),
    ],
)
async def test_a_field_of_a_later_version_is_refused_not_ignored(
    stub: "Stub", place: Callable[[Request], Request], name: str
) -> None:
    request = sampling_request(temperature=1.0)
    place(request).MergeFromString(FIELD_100)
    error = await refusal(stub, request)
    assert isinstance(error, errors.InvalidArgumentError)
    assert error.field == name
    assert "100" in error.message


@pytest.mark.parametrize(("failure", "code"), ERROR_TABLE)
@pytest.mark.parametrize("fail_after_tokens", [None, 2])
async def test_typed_errors_keep_class_message_and_details(
    stub: "Stub",
    engine: EchoEngine,
    failure: errors.StagecoachError,
    code: grpc.StatusCode,
    fail_after_tokens: int | None,
) -> None:
    engine.failure, engine.fail_after_tokens = failure, fail_after_tokens
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await collect(stub, text_request(max_tokens=4))
    assert caught.value.code() == code
    error = from_rpc_error(caught.value)
    assert type(error) is type(failure)
    assert error.message == failure.message
    assert error.details == failure.details
    assert engine.running == set()


@pytest.mark.parametrize("fail_after_tokens", [None, 2])
async def test_a_bug_is_internal_logged_and_shows_nothing(
    stub: "Stub",
    engine: EchoEngine,
    fail_after_tokens: int | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine.failure = ZeroDivisionError("secret/path")
    engine.fail_after_tokens = fail_after_tokens
    error = await refusal(stub, text_request(max_tokens=4))
    assert isinstance(error, errors.InternalError)
    assert "secret" not in error.message
    assert "secret/path" in caplog.text
    reference = error.message.split()[-1]
    assert reference in caplog.text


async def test_a_request_over_the_context_has_the_numbers(stub: "Stub") -> None:
    error = await refusal(stub, text_request("a" * MAX_MODEL_LEN, max_tokens=1))
    assert isinstance(error, errors.ContextLengthExceededError)
    assert error.details == {"num_prompt_tokens": str(MAX_MODEL_LEN), "limit": str(MAX_MODEL_LEN)}


async def test_a_message_over_the_limit_is_refused_and_the_server_lives(stub: "Stub") -> None:
    error = await refusal(stub, text_request("x" * max_request_bytes(MAX_MODEL_LEN)))
    assert isinstance(error, errors.InvalidArgumentError)
    assert len(await collect(stub, text_request(max_tokens=1))) == 3


def test_grpc_takes_more_calls_than_may_wait() -> None:
    assert max_calls_of_caller(10_000) > 10_000


async def test_cancelling_the_call_ends_the_request(stub: "Stub", engine: EchoEngine) -> None:
    engine.delay_s = 0.01
    call = stub.Generate(text_request(), timeout=DEADLINE_S)
    await call.read()
    assert len(engine.running) == 1
    call.cancel()
    await until(lambda: not engine.running)


async def test_cancelling_the_call_ends_the_work_for_a_request_that_is_prepared(
    stub: "Stub", engine: EchoEngine
) -> None:
    preparing = engine.preparing = Preparing()
    call = stub.Generate(text_request("ab"))
    reading = asyncio.ensure_future(call.read())
    await until(lambda: preparing.num_waiting == 1)
    call.cancel()
    await until(lambda: preparing.num_cancelled == 1)
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert engine.specs == []


async def test_a_client_that_vanishes_ends_its_request(engine: EchoEngine) -> None:
    engine.delay_s = 0.01
    async with serving(engine) as address:
        channel = grpc.aio.insecure_channel(address)
        call = open_stub(channel).Generate(text_request())
        await call.read()
        await channel.close()
        await until(lambda: not engine.running)


async def test_a_client_that_stops_reading_and_then_cancels_ends_its_request(
    engine: EchoEngine, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        serving(engine) as address,
        grpc.aio.insecure_channel(address, [("grpc.http2.lookahead_bytes", 1024)]) as channel,
    ):
        call = open_stub(channel).Generate(text_request("x" * 1000, ignore_eos=True))
        await call.read()
        await asyncio.sleep(0.1)
        call.cancel()
        await until(lambda: not engine.running)
    assert "internal error" not in caplog.text


async def test_a_deadline_ends_the_request(stub: "Stub", engine: EchoEngine) -> None:
    engine.delay_s = 0.01
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _event in stub.Generate(text_request(), timeout=0.2):
            pass
    assert isinstance(from_rpc_error(caught.value), errors.DeadlineExceededError)
    await until(lambda: not engine.running)


async def test_tokenize_answers_with_ids_and_refuses_like_generate(stub: "Stub") -> None:
    prompt = generation_pb2.Prompt(text="ab")
    response = await stub.Tokenize(generation_pb2.TokenizeRequest(prompt=prompt))
    assert list(response.token_ids) == [97, 98]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Tokenize(generation_pb2.TokenizeRequest())
    error = from_rpc_error(caught.value)
    assert isinstance(error, errors.InvalidArgumentError)
    assert error.field == "prompt"


async def test_tokenize_refuses_a_field_of_a_later_version(stub: "Stub") -> None:
    request = generation_pb2.TokenizeRequest(prompt=generation_pb2.Prompt(text="ab"))
    request.MergeFromString(FIELD_100)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Tokenize(request)
    error = from_rpc_error(caught.value)
    assert isinstance(error, errors.InvalidArgumentError)
    assert error.field == "TokenizeRequest"


async def test_status_refuses_a_field_of_a_later_version(stub: "Stub") -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.GetStatus(generation_pb2.GetStatusRequest.FromString(FIELD_100))
    error = from_rpc_error(caught.value)
    assert isinstance(error, errors.InvalidArgumentError)
    assert error.field == "GetStatusRequest"


async def test_status_has_every_field(stub: "Stub") -> None:
    status = await stub.GetStatus(generation_pb2.GetStatusRequest())
    unset = {field.name for field in status.DESCRIPTOR.fields} - {
        field.name for field, _ in status.ListFields()
    }
    assert unset == {"num_running", "problem", "failed"}  # none runs, and nothing is wrong
    known, unknown = status.stages
    assert (known.state, unknown.state) == (
        generation_pb2.STAGE_STATE_READY,
        generation_pb2.STAGE_STATE_LOST,
    )
    assert not unknown.HasField("info")
    info_unset = {field.name for field in known.info.DESCRIPTOR.fields} - {
        field.name for field, _ in known.info.ListFields()
    }
    assert info_unset == {"emulated"}  # false


async def health(channel: grpc.aio.Channel, service: str = "") -> int:
    stub = health_pb2_grpc.HealthStub(channel)
    request = health_pb2.HealthCheckRequest(service=service)
    return int((await stub.Check(request, timeout=DEADLINE_S)).status)


async def test_before_there_is_an_engine_calls_are_unavailable_and_health_says_so() -> None:
    async with bound() as server, grpc.aio.insecure_channel(server.address) as channel:
        assert await health(channel) == health_pb2.HealthCheckResponse.NOT_SERVING
        error = await refusal(open_stub(channel), text_request())
        assert isinstance(error, errors.UnavailableError)
        await server.serve(EchoEngine())
        for service in ("", "stagecoach.v1.GenerationService"):
            assert await health(channel, service) == health_pb2.HealthCheckResponse.SERVING
        assert len(await collect(open_stub(channel), text_request(max_tokens=1))) == 3


async def test_a_port_in_use_is_a_clear_error() -> None:
    async with bound() as (_, catalog, address):
        second = GenerationServer(
            catalog,
            Address.parse(address, field="listen"),
            max_model_len=MAX_MODEL_LEN,
            max_num_waiting=MAX_NUM_WAITING,
        )
        with pytest.raises(errors.UnavailableError, match=f"cannot listen on {address}"):
            await second.start()
        await second.stop(grace_s=0)


async def test_stopping_lets_a_request_finish_within_the_grace_time() -> None:
    engine = EchoEngine(delay_s=0.02)
    async with bound() as server, grpc.aio.insecure_channel(server.address) as channel:
        await server.serve(engine)
        call = open_stub(channel).Generate(text_request(max_tokens=10))
        await until(lambda: bool(engine.running))
        stopping = asyncio.create_task(server.stop(grace_s=DEADLINE_S))
        events = [event async for event in call]
        await stopping
    assert events[-1].HasField("finished")


async def test_stopping_fails_typed_what_is_left_after_the_grace_time() -> None:
    engine = EchoEngine(delay_s=0.02)
    async with bound() as server, grpc.aio.insecure_channel(server.address) as channel:
        await server.serve(engine)
        call = open_stub(channel).Generate(text_request())
        await until(lambda: bool(engine.running))
        stopping = asyncio.create_task(server.stop(grace_s=0.05))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _event in call:
                pass
        await stopping
    error = from_rpc_error(caught.value)
    assert isinstance(error, errors.UnavailableError)
    assert error.message == "the coordinator is shutting down"
