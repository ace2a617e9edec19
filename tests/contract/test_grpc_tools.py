"""Tools and thinking over gRPC, with real pipelines, and programs of an older contract."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import jsonschema_rs
import pytest

from coordinator.doors.grpc.chat_messages import MAX_TEMPLATE_CHARS
from coordinator.doors.grpc.unknown_fields import refuse_unknown_fields
from stagecoach.client import (
    AsyncClient,
    Client,
    FinishReason,
    IncompatibleError,
    InvalidArgumentError,
)
from stagecoach.contract.layer_range import LayerRange
from stagecoach.contract.status import from_rpc_error, trailing_metadata
from stagecoach.v1 import generation_pb2, generation_pb2_grpc
from tests.byte_models import byte_model
from tests.clusters import running_engine
from tests.contract.byte_doors import THINKING_TEMPLATE
from tests.contract.echo_engine import serving
from tests.contract.http_door import in_background
from tests.contract.test_http_tools import WEATHER
from tests.older_contract import older

MAX_MODEL_LEN = 2048
DEADLINE_S = 90.0
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "weather", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "now", "description": "The time."}},
]
CHAT: list[dict[str, Any]] = [{"role": "user", "content": "How is the weather?"}]
NO_MARK = {30: -100.0}
"""Keeps a byte model from writing `<`, so that it thinks to its end."""

Request = generation_pb2.GenerateRequest


@asynccontextmanager
async def cluster(model: Path) -> AsyncIterator[str]:
    ranges = [LayerRange(0, 3), LayerRange(3, 6)]
    # Serving ends with the engine, whose stages hold no prefixes from then on.
    no_cache = {"prefix_cache": False}
    async with (
        running_engine(model, ranges, coordinator=no_cache, kv_memory_bytes=4 << 20) as engine,
        serving(engine) as address,
    ):
        yield address


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    model = byte_model(tmp_path_factory.mktemp("model"), max_model_len=MAX_MODEL_LEN)
    with in_background(cluster(model)) as found:
        yield found


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[Client]:
    with Client(address) as found:
        yield found


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder = tmp_path_factory.mktemp("model")
    model = byte_model(folder, max_model_len=MAX_MODEL_LEN, chat_template=THINKING_TEMPLATE)
    with in_background(cluster(model)) as address, Client(address) as found:
        yield found


def ask(client: Client, **options: Any) -> Any:
    defaults = {"max_tokens": 700, "seed": 3, "temperature": 1.0}
    return client.complete(CHAT, **{**defaults, **options})


@pytest.mark.parametrize("seed", range(3))
def test_a_required_call_conforms_to_its_schema(client: Client, seed: int) -> None:
    done = ask(client, tools=TOOLS, tool_choice="required", parallel_tool_calls=False, seed=seed)
    assert (done.finish_reason, done.text) == (FinishReason.TOOL_CALLS, "")
    [call] = done.tool_calls
    if call.name == "weather":
        jsonschema_rs.validator_for(WEATHER).validate(call.parsed_arguments)
    else:
        assert (call.name, call.parsed_arguments) == ("now", {})


@pytest.mark.parametrize(
    "schema", ["no mapping", {"type": "array"}, {"properties": {"x": {"pattern": "(?<=a)b"}}}]
)
def test_a_tool_has_one_name_whoever_refuses_it(client: Client, schema: object) -> None:
    function = {"name": "g", "parameters": schema}
    tools = [TOOLS[0], {"type": "function", "function": function}]
    with pytest.raises(InvalidArgumentError) as caught:
        ask(client, tools=tools, tool_choice="required")
    assert caught.value.field is not None
    assert caught.value.field.removesuffix(".type") == "tools[1].function.parameters"
    assert caught.value.message.startswith("tools[1].function.parameters")


def test_a_schema_that_calls_are_not_held_to_is_told(client: Client) -> None:
    hard = {"properties": {"x": {"type": "string", "pattern": "(?<=a)b"}}}
    tools = [TOOLS[0], {"type": "function", "function": {"name": "g", "parameters": hard}}]
    assert ask(client, tools=tools, max_tokens=1).relaxed_schemas == (
        "tools[1].function.parameters",
    )
    assert ask(client, tools=TOOLS, max_tokens=1).relaxed_schemas == ()


@pytest.mark.parametrize(
    "choice",
    [
        "now",
        {"type": "function", "function": {"name": "now"}},
        {
            "type": "allowed_tools",
            "allowed_tools": {
                "mode": "required",
                "tools": [{"type": "function", "function": {"name": "now"}}],
            },
        },
    ],
)
def test_only_what_is_named_is_called(client: Client, choice: Any) -> None:
    done = ask(client, tools=TOOLS, tool_choice=choice, parallel_tool_calls=False)
    assert [call.name for call in done.tool_calls] == ["now"]


def test_names_alone_allow_and_do_not_force(client: Client) -> None:
    done = ask(client, tools=TOOLS, tool_choice=["now"], max_tokens=20)
    assert {call.name for call in done.tool_calls} <= {"now"}


def test_a_call_that_is_cut_says_so_and_is_left_out(client: Client) -> None:
    done = ask(client, tools=TOOLS, tool_choice="weather", max_tokens=60)
    assert (done.finish_reason, done.tool_calls, done.text) == (FinishReason.LENGTH, (), "")


def test_tools_that_may_not_be_called_are_not_shown(client: Client) -> None:
    plain = ask(client, max_tokens=5)
    none = ask(client, max_tokens=5, tools=TOOLS, tool_choice="none")
    assert none.text == plain.text
    assert none.usage.num_prompt_tokens == plain.usage.num_prompt_tokens
    assert client.tokenize(CHAT, tools=TOOLS, tool_choice="none") == client.tokenize(CHAT)
    assert len(client.tokenize(CHAT, tools=TOOLS)) > len(client.tokenize(CHAT))


def test_a_conversation_goes_on_behind_a_call(client: Client) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "now", "arguments": "{}"}}
    asked: dict[str, Any] = {"role": "assistant", "content": None, "tool_calls": [call]}
    answer = {"role": "tool", "tool_call_id": "call_1", "content": "Noon."}
    shown = bytes(
        token_id - 3 for token_id in client.tokenize([*CHAT, asked, answer]) if token_id > 2
    )
    assert len(shown) > len(client.tokenize(CHAT)) + len("Noon.")
    done = client.complete([*CHAT, asked, answer], tools=TOOLS, max_tokens=3)
    assert done.finish_reason in FinishReason


def test_thinking_is_told_from_content_and_counted(thinker: Client) -> None:
    settings = {"max_tokens": 40, "logit_bias": NO_MARK}
    done = ask(thinker, divide_output=True, **settings)
    assert (done.text, len(done.reasoning) > 0) == ("", True)
    assert done.usage.num_reasoning_tokens == 40
    whole = ask(thinker, **settings)
    assert (whole.text, whole.reasoning) == (done.reasoning, "")
    assert whole.usage.num_reasoning_tokens == 0


def test_thinking_can_be_switched_off(thinker: Client) -> None:
    options: Sequence[dict[str, Any]] = (
        {"reasoning_effort": "none"},
        {"enable_thinking": False},
        {"template_arguments": {"enable_thinking": False}},
        {"enable_thinking": True, "template_arguments": {"enable_thinking": False}},
    )
    for one in options:
        done = ask(thinker, divide_output=True, max_tokens=10, **one)
        assert done.text
        assert done.usage.num_reasoning_tokens == 0


def test_the_raw_stream_tells_the_parts_of_a_call_in_order(address: str) -> None:
    tools = [
        generation_pb2.Tool(name="weather", parameters=json.dumps(WEATHER), strict=True),
    ]
    chat = generation_pb2.Chat(
        messages=[generation_pb2.ChatMessage(role="user", content="x")],
        tools=tools,
        tool_choice=generation_pb2.ToolChoice(name="weather"),
    )
    request = Request(prompt=generation_pb2.Prompt(chat=chat), max_tokens=700)
    with grpc.insecure_channel(address) as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        events = list(stub.Generate(request, timeout=DEADLINE_S))
    parts = [part for event in events for part in (*event.tokens.parts, *event.finished.parts)]
    kinds = [part.WhichOneof("part") for part in parts]
    assert kinds[0] == "call_begins"
    assert kinds[-1] == "call_ends"
    assert set(kinds[1:-1]) == {"arguments"}
    assert parts[0].call_begins.name == "weather"
    assert parts[0].call_begins.id.startswith("call_")
    arguments = "".join(part.arguments.text for part in parts[1:-1])
    jsonschema_rs.validator_for(WEATHER).validate(json.loads(arguments))
    assert {event.tokens.text for event in events} == {""}
    assert events[-1].finished.finish_reason == generation_pb2.FINISH_REASON_TOOL_CALLS


def chat_request(**fields: Any) -> Request:
    messages = fields.pop("messages", [{"role": "user", "content": "x"}])
    chat = generation_pb2.Chat(
        messages=[generation_pb2.ChatMessage(**one) for one in messages], **fields
    )
    return Request(prompt=generation_pb2.Prompt(chat=chat), max_tokens=1)


def tool(**fields: Any) -> generation_pb2.Tool:
    return generation_pb2.Tool(**{"name": "f", **fields})


A_CALL = generation_pb2.ToolCall(id="1", name="f", arguments="{}")
FIRST_CALL = "prompt.chat.messages[0].tool_calls[0]"
UNKEPT = '{"properties": {"x": {"pattern": "(?<=a)b"}}}'
"""A schema that no grammar keeps to."""


def calling(**fields: Any) -> Sequence[dict[str, Any]]:
    call = generation_pb2.ToolCall(**{"id": "1", "name": "f", "arguments": "{}", **fields})
    return [{"role": "assistant", "tool_calls": [call]}]


Choice = generation_pb2.ToolChoice
Allowed = generation_pb2.AllowedTools
NO_MODE = Choice.FromString(b"\x08\x09")


@pytest.mark.parametrize(
    ("request_message", "field"),
    [
        (chat_request(tools=[tool(name="a b")]), "prompt.chat.tools"),
        (chat_request(tools=[tool(), tool()]), "prompt.chat.tools"),
        (chat_request(tools=[tool(name=f"f{i}") for i in range(129)]), "prompt.chat.tools"),
        (chat_request(tools=[tool(description="x" * 400_000)]), "prompt.chat.tools"),
        (
            chat_request(tools=[tool(), tool(name="g", parameters="{")]),
            "prompt.chat.tools[1].parameters",
        ),
        (chat_request(tools=[tool(parameters="[1]")]), "prompt.chat.tools[0].parameters"),
        (chat_request(tools=[tool(parameters="")]), "prompt.chat.tools[0].parameters"),
        (
            chat_request(tools=[tool(parameters='{"type": "array"}')]),
            "prompt.chat.tools[0].parameters.type",
        ),
        (
            chat_request(
                tools=[
                    tool(parameters='{"properties": {"x": {"pattern": "(?<=a)b"}}}', strict=True)
                ]
            ),
            "prompt.chat.tools[0].parameters",
        ),
        (
            chat_request(tool_choice=Choice(mode=generation_pb2.TOOL_MODE_REQUIRED)),
            "prompt.chat.tool_choice",
        ),
        (chat_request(tools=[tool()], tool_choice=Choice(name="g")), "prompt.chat.tool_choice"),
        (chat_request(tools=[tool()], tool_choice=NO_MODE), "prompt.chat.tool_choice.mode"),
        (
            chat_request(tools=[tool()], tool_choice=Choice(allowed=Allowed())),
            "prompt.chat.tool_choice",
        ),
        (
            chat_request(
                tools=[tool()],
                tool_choice=Choice(
                    allowed=Allowed(mode=generation_pb2.TOOL_MODE_NONE, names=["f"])
                ),
            ),
            "prompt.chat.tool_choice.allowed.mode",
        ),
        (chat_request(template_arguments="["), "prompt.chat.template_arguments"),
        (chat_request(template_arguments="[" * 20_000), "prompt.chat.template_arguments"),
        (chat_request(template_arguments="1"), "prompt.chat.template_arguments"),
        (
            chat_request(template_arguments=json.dumps("x" * MAX_TEMPLATE_CHARS)),
            "prompt.chat.template_arguments",
        ),
        (
            chat_request(messages=calling(arguments="{")),
            f"{FIRST_CALL}.arguments",
        ),
        (
            chat_request(messages=calling(arguments="1")),
            f"{FIRST_CALL}.arguments",
        ),
        (
            chat_request(messages=calling(arguments='{"x":' + "[" * 50_000)),
            f"{FIRST_CALL}.arguments",
        ),
        (
            chat_request(messages=[{**calling()[0], "role": "user"}]),
            "prompt.chat.messages[0].tool_calls",
        ),
        (
            chat_request(messages=[{"role": "assistant", "tool_call_id": "1"}]),
            "prompt.chat.messages[0].tool_call_id",
        ),
        (
            chat_request(messages=33 * [{"role": "assistant", "tool_calls": 128 * [A_CALL]}]),
            "prompt.chat.messages",
        ),
        (chat_request(reasoning_effort="x" * 65), "prompt.chat.reasoning_effort"),
        (
            chat_request(messages=[{"role": "user", "reasoning": "hm"}]),
            "prompt.chat.messages[0].reasoning",
        ),
        (
            chat_request(
                messages=[{**calling()[0], "tool_calls": 129 * calling()[0]["tool_calls"]}]
            ),
            "prompt.chat.messages[0].tool_calls",
        ),
    ],
)
def test_what_is_refused_is_named_by_its_path(
    address: str, request_message: Request, field: str
) -> None:
    with grpc.insecure_channel(address) as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            list(stub.Generate(request_message, timeout=DEADLINE_S))
    error = from_rpc_error(caught.value)
    assert isinstance(error, InvalidArgumentError)
    assert error.field == field
    assert error.message.startswith(field)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"divide_output": False}, "divide_output"),
        ({"max_thinking_tokens": 0}, "max_thinking_tokens"),
    ],
)
def test_options_of_a_divided_output_are_refused_by_name(
    client: Client, fields: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        ask(client, tools=TOOLS, max_tokens=1, **fields)
    assert (caught.value.field, caught.value.message.startswith(field)) == (field, True)


def test_a_limit_of_thinking_needs_a_divided_output(client: Client) -> None:
    with pytest.raises(InvalidArgumentError, match="max_thinking_tokens is set") as caught:
        ask(client, max_thinking_tokens=5)
    assert caught.value.field == "max_thinking_tokens"


def test_a_client_of_the_older_contract_gets_what_it_got(address: str, thinker: Client) -> None:
    for peer in (address, thinker.address):
        with grpc.insecure_channel(peer) as channel:
            generate: Any = channel.unary_stream(
                "/stagecoach.v1.GenerationService/Generate",
                request_serializer=lambda one: one.SerializeToString(),
                response_deserializer=older(generation_pb2.GenerateResponse).FromString,
            )
            request = older(Request)(max_tokens=30)
            request.prompt.chat.messages.add(role="user", content="How is the weather?")
            events = list(generate(request, timeout=DEADLINE_S))
        with Client(peer) as newer:
            done = newer.complete(CHAT, max_tokens=30)
        text = "".join(event.tokens.text + event.finished.text for event in events)
        assert text == done.text
        for event in events:
            refuse_unknown_fields(event.tokens, "tokens")
            refuse_unknown_fields(event.finished, "finished")


class OlderServicer:
    """Answers as a coordinator before tools: with the checks of all its fields, and no more."""

    def handlers(self) -> grpc.GenericRpcHandler:
        async def generate(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
            try:
                refuse_unknown_fields(request, "GenerateRequest")
                refuse_unknown_fields(request.prompt, "prompt")
                refuse_unknown_fields(request.prompt.chat, "prompt.chat")
                for message in request.prompt.chat.messages:
                    refuse_unknown_fields(message, "prompt.chat.messages")
            except InvalidArgumentError as error:
                await context.abort(*trailing_metadata(error))
            await context.write(older(generation_pb2.GenerateResponse)())

        method: grpc.RpcMethodHandler[Any, Any] = grpc.unary_stream_rpc_method_handler(
            generate,
            request_deserializer=older(Request).FromString,
            response_serializer=lambda one: one.SerializeToString(),
        )
        return grpc.method_handlers_generic_handler(
            "stagecoach.v1.GenerationService", {"Generate": method}
        )


@pytest.mark.parametrize(
    ("start", "named"),
    [
        (lambda client: client.complete(CHAT, tools=TOOLS), "tools"),
        (lambda client: client.chat(CHAT, tools=TOOLS), "tools"),
        (lambda client: client.chat(CHAT), "divide_output"),
        (lambda client: client.complete(CHAT, enable_thinking=False), "enable_thinking"),
        (
            lambda client: client.complete(
                [*CHAT, {"role": "tool", "content": "x", "tool_call_id": "1"}]
            ),
            "tool_call_id",
        ),
    ],
)
async def test_an_older_coordinator_is_named_instead_of_tools_being_ignored(
    start: Callable[[AsyncClient], Any], named: str
) -> None:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers([OlderServicer().handlers()])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with AsyncClient(f"127.0.0.1:{port}") as client, asyncio.timeout(DEADLINE_S):
            with pytest.raises(IncompatibleError, match="update the coordinator") as caught:
                await start(client)
        assert caught.value.message.startswith(f"{named}: the coordinator at 127.0.0.1:{port}")
    finally:
        await server.stop(None)
