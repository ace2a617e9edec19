"""Chats of the SDK in which a model calls Python functions, synchronous and asyncio, over sockets.

The texts of the model are written by hand; `test_grpc_tools` has real models with forced calls.
"""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from coordinator.core.output_parts import (
    ArgumentsPart,
    CallBegins,
    CallEnds,
    ContentPart,
    OutputPart,
    ReasoningPart,
)
from coordinator.core.request_spec import ChatPrompt, RequestSpec
from coordinator.core.tools import ToolMode
from coordinator.dialogue.dialect import Dialect
from coordinator.dialogue.reader import OutputReader
from stagecoach import client as sdk
from stagecoach.client import (
    AsyncClient,
    ChatMessage,
    ChatResult,
    Client,
    DeadlineExceededError,
    FinishReason,
    InvalidArgumentError,
    RequestAbortedError,
    RoundEnds,
    ToolCall,
    ToolError,
    ToolResult,
)
from tests.contract.echo_engine import EchoEngine
from tests.contract.scripted_engine import Script, ScriptedEngine
from tests.contract.spoken_engine import SpokenEngine
from tests.contract.test_generation_client import BackgroundServer, until
from tests.recorded_calls import ARGUMENTS, TOOLS, RecordedCalls, recorded_calls

CHAT = [{"role": "user", "content": "How is the weather?"}]
DEADLINE_S = 90.0


def call_text(name: str, **arguments: object) -> str:
    body = json.dumps({"name": name, "arguments": arguments})
    return f"<tool_call>\n{body}\n</tool_call>"


ASKS = Script("<think>Look it up.</think>One moment." + call_text("weather", city="Rome", days=2))
ANSWERS = Script("Sunny.")


def weather(city: str, days: int = 1) -> dict[str, object]:
    """Tells the weather."""
    return {"city": city, "days": days}


@contextmanager
def scripted(*scripts: Script) -> Iterator[tuple[ScriptedEngine, str]]:
    engine = ScriptedEngine(*scripts)
    with BackgroundServer(engine) as server:
        yield engine, server.address


def prompts(engine: EchoEngine) -> list[ChatPrompt]:
    found = [spec.prompt for spec in engine.specs]
    return [prompt for prompt in found if isinstance(prompt, ChatPrompt)]


def chat_of(address: str, is_async: bool, **options: Any) -> ChatResult:
    """One chat, by either client."""
    if not is_async:
        with Client(address) as client:
            return client.chat(CHAT, timeout_s=DEADLINE_S, **options)

    async def run() -> ChatResult:
        async with AsyncClient(address) as client:
            return await client.chat(CHAT, timeout_s=DEADLINE_S, **options)

    return asyncio.run(run())


both = pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])


@both
def test_functions_are_called_until_there_is_an_answer(is_async: bool) -> None:
    with scripted(ASKS, ANSWERS) as (engine, address):
        done = chat_of(address, is_async, tools=[weather])
    assert (done.content, done.reasoning, done.tool_calls) == ("Sunny.", "", ())
    assert done.finish_reason is FinishReason.STOP
    call = ToolCall(call_id="call_1", name="weather", arguments='{"city": "Rome", "days": 2}')
    assert done.messages == (
        ChatMessage(role="user", content="How is the weather?"),
        ChatMessage(
            role="assistant",
            content="One moment.",
            tool_calls=(call,),
            reasoning="Look it up.",
        ),
        ChatMessage(
            role="tool",
            content='{"city": "Rome", "days": 2}',
            name="weather",
            tool_call_id="call_1",
        ),
        ChatMessage(role="assistant", content="Sunny."),
    )
    first, second = done.completions
    assert done.usage.num_completion_tokens == (
        first.usage.num_completion_tokens + second.usage.num_completion_tokens
    )
    assert [len(prompt.messages) for prompt in prompts(engine)] == [1, 3]
    sent = prompts(engine)[1].messages[1]
    assert (sent.reasoning, sent.tool_calls[0].arguments) == ("Look it up.", call.arguments)
    [tool] = prompts(engine)[0].tools
    assert (tool.name, tool.description, tool.is_strict) == ("weather", "Tells the weather.", True)


def test_a_stream_tells_all_that_happens_in_order() -> None:
    with (
        scripted(ASKS, ANSWERS) as (_, address),
        Client(address) as client,
        client.chat_stream(CHAT, tools=[weather]) as stream,
    ):
        events = list(stream)
        done = stream.result()
    kinds: list[str] = []
    for event in events:
        if not kinds or kinds[-1] != type(event).__name__:
            kinds.append(type(event).__name__)
    assert kinds == [
        *("ReasoningPart", "ContentPart", "CallBegins", "ArgumentsPart", "CallEnds", "RoundEnds"),
        *("ToolResult", "ContentPart", "RoundEnds"),
    ]
    reasoning = [event.text for event in events if isinstance(event, sdk.ReasoningPart)]
    content = [event.text for event in events if isinstance(event, sdk.ContentPart)]
    assert ("".join(reasoning), "".join(content)) == ("Look it up.", "One moment.Sunny.")
    [result] = [event for event in events if isinstance(event, ToolResult)]
    assert (result.call.name, result.error) == ("weather", None)
    assert [event.completion for event in events if isinstance(event, RoundEnds)] == [
        *done.completions
    ]


async def test_an_asyncio_stream_awaits_coroutines_and_calls_others_in_a_thread() -> None:
    threads: list[threading.Thread] = []

    async def first() -> str:
        threads.append(threading.current_thread())
        return "1"

    def second() -> None:
        threads.append(threading.current_thread())

    asks = Script(call_text("first") + "\n" + call_text("second"))
    with scripted(asks, ANSWERS) as (engine, address):
        async with (
            AsyncClient(address) as client,
            client.chat_stream(CHAT, tools=[first, second]) as stream,
        ):
            events = [event async for event in stream]
    results = [event.content for event in events if isinstance(event, ToolResult)]
    assert results == ["1", "null"]
    assert [thread is threading.main_thread() for thread in threads] == [True, False]
    assert [message.content for message in prompts(engine)[1].messages[2:]] == ["1", "null"]


def test_a_coroutine_is_refused_where_nobody_awaits_it() -> None:
    async def later() -> str:
        return ""

    with Client("127.0.0.1:1") as client, pytest.raises(InvalidArgumentError) as caught:
        client.chat(CHAT, tools=[later])
    assert caught.value.message.startswith("tools: later() is a coroutine")


class NoSuchCityError(ValueError):
    pass


def failing(error: Exception) -> Callable[..., object]:
    def weather(city: str, days: int) -> str:
        raise error

    return weather


@both
def test_the_model_is_told_of_a_tool_error_and_nothing_else(is_async: bool) -> None:
    with scripted(ASKS, ANSWERS) as (engine, address):
        done = chat_of(address, is_async, tools=[failing(ToolError("no such city"))])
        assert done.content == "Sunny."
        assert prompts(engine)[1].messages[-1].content == "Error: no such city"
    with scripted(ASKS, ANSWERS) as (engine, address):
        with pytest.raises(NoSuchCityError, match="Rome"):
            chat_of(address, is_async, tools=[failing(NoSuchCityError("Rome"))])
        assert len(engine.specs) == 1


@both
def test_a_function_that_raises_stop_iteration_does_not_end_a_chat_unseen(is_async: bool) -> None:
    with (
        scripted(ASKS, ANSWERS) as (_, address),
        pytest.raises(RuntimeError, match=r"weather\(\) raised StopIteration"),
    ):
        chat_of(address, is_async, tools=[failing(StopIteration())])


@both
def test_a_caller_may_have_the_model_told_of_every_exception(is_async: bool) -> None:
    def told(call: ToolCall, error: Exception) -> str:
        return f"{call.name} failed: {error}"

    with scripted(ASKS, ANSWERS) as (engine, address):
        tools = [failing(NoSuchCityError("Rome"))]
        chat_of(address, is_async, tools=tools, on_tool_error=told)
        assert prompts(engine)[1].messages[-1].content == "weather failed: Rome"


def test_arguments_that_do_not_fit_are_told_to_the_model() -> None:
    asks = Script(call_text("weather", city=5))
    with scripted(asks, ANSWERS) as (engine, address):
        chat_of(address, False, tools=[weather])
        assert prompts(engine)[1].messages[-1].content == (
            "Error: the arguments of weather are wrong: arguments.city must be of the type string"
        )


@both
def test_a_call_that_is_declined_is_not_made(is_async: bool) -> None:
    asked: list[ToolCall] = []

    def may_call(call: ToolCall) -> bool:
        asked.append(call)
        return False

    with scripted(ASKS, ANSWERS) as (engine, address):
        tools = [failing(AssertionError("was called"))]
        chat_of(address, is_async, tools=tools, may_call=may_call)
        assert prompts(engine)[1].messages[-1].content == "Error: the user declined this call"
    assert [call.name for call in asked] == ["weather"]


@both
def test_the_last_round_calls_nothing(is_async: bool) -> None:
    with scripted(ASKS) as (engine, address):
        done = chat_of(address, is_async, tools=[weather], max_rounds=3)
    assert len(engine.specs) == len(done.completions) == 3
    assert done.finish_reason is FinishReason.TOOL_CALLS
    assert [call.name for call in done.tool_calls] == ["weather"]


def test_calls_of_other_tools_are_left_to_the_caller() -> None:
    described = {"type": "function", "function": {"name": "now"}}
    asks = Script(call_text("now") + "\n" + call_text("weather", city="Rome"))
    with scripted(asks, ANSWERS) as (engine, address), Client(address) as client:
        done = client.chat(CHAT, tools=[weather, described])
        assert [call.name for call in done.tool_calls] == ["now"]
        assert [message.role for message in done.messages] == ["user", "assistant", "tool"]
        answer = ChatMessage(role="tool", content="Noon.", tool_call_id=done.tool_calls[0].call_id)
        done = client.chat([*done.messages, answer], tools=[weather, described])
    assert done.content == "Sunny."
    assert [len(prompt.messages) for prompt in prompts(engine)] == [1, 4]


def test_an_answer_that_was_cut_calls_nothing() -> None:
    asks = Script(call_text("weather", city="Rome") + "<tool_call>", is_cut=True)
    with scripted(asks) as (engine, address):
        done = chat_of(address, False, tools=[weather])
    assert done.finish_reason is FinishReason.LENGTH
    assert (len(done.tool_calls), len(engine.specs)) == (1, 1)


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ("required", None),
        ("weather", None),
        (
            {
                "type": "allowed_tools",
                "allowed_tools": {
                    "mode": "required",
                    "tools": [{"type": "function", "function": {"name": "weather"}}],
                },
            },
            {"weather"},
        ),
    ],
)
def test_a_call_is_forced_in_the_first_round_only(choice: Any, names: set[str] | None) -> None:
    with scripted(ASKS, ANSWERS) as (engine, address):
        chat_of(address, False, tools=[weather], tool_choice=choice, request_id="mine")
    first, second = [spec.tools for spec in engine.specs]
    assert first is not None
    assert second is not None
    assert (first.mode, second.mode) == (ToolMode.REQUIRED, ToolMode.AUTO)
    assert second.callable_names == names
    assert [spec.request_id for spec in engine.specs] == ["mine", "mine-2"]


def test_closing_a_stream_cancels_what_runs() -> None:
    with scripted(ASKS, ANSWERS) as (engine, address), Client(address) as client:
        engine.delay_s = 0.01
        stream = client.chat_stream(CHAT, tools=[weather])
        next(stream)
        stream.close()
        for _ in range(2):
            with pytest.raises(RequestAbortedError):
                list(stream)
        until(lambda: not engine.running)


@both
def test_leaving_a_loop_cancels_what_runs(is_async: bool) -> None:
    async def leave() -> None:
        async with AsyncClient(address) as client:
            async for _event in client.chat_stream(CHAT):
                break
            await asyncio.to_thread(until, lambda: not engine.running)

    with scripted(ANSWERS) as (engine, address):
        engine.delay_s = 0.02
        engine.num_chars = 1
        if is_async:
            asyncio.run(leave())
        else:
            with Client(address) as client:
                for _event in client.chat_stream(CHAT):
                    break
                until(lambda: not engine.running)
        assert len(engine.specs) == 1


async def test_closing_an_asyncio_stream_ends_a_function_that_hangs() -> None:
    started = asyncio.Event()

    async def hanging(city: str, days: int) -> None:
        started.set()
        await asyncio.Event().wait()

    hanging.__name__ = "weather"
    with scripted(ASKS, ANSWERS) as (_, address):
        async with AsyncClient(address) as client:
            stream = client.chat_stream(CHAT, tools=[hanging])
            reading = asyncio.create_task(stream.result())
            await asyncio.wait_for(started.wait(), DEADLINE_S)
            stream.close()
            with pytest.raises(RequestAbortedError):
                await asyncio.wait_for(reading, DEADLINE_S)


def test_the_time_limit_is_of_all_rounds() -> None:
    def weather(city: str, days: int) -> str:
        until(lambda: not engine.running)
        threading.Event().wait(0.3)
        return ""

    with scripted(ASKS, ANSWERS) as (engine, address), Client(address) as client:
        with pytest.raises(DeadlineExceededError):
            client.chat(CHAT, tools=[weather], timeout_s=0.25)
        assert len(engine.specs) == 1


@pytest.mark.parametrize(
    ("messages", "options", "field"),
    [
        ("hello", {}, "messages"),
        ([], {}, "messages"),
        ([1, 2], {}, "messages"),
        ([{"role": "user"}], {}, "messages"),
        (CHAT, {"max_rounds": 0}, "max_rounds"),
        (CHAT, {"divide_output": False}, "divide_output"),
        (CHAT, {"tools": [5]}, "tools[0]"),
        (CHAT, {"tools": "f"}, "tools"),
        (CHAT, {"tools": [{"type": "web_search"}]}, "tools[0]"),
        (CHAT, {"tools": [{"function": {"name": "f", "schema": {}}}]}, "tools[0].function"),
        (CHAT, {"tools": [{"function": {"name": 5}}]}, "tools[0].function"),
        (
            CHAT,
            {"tools": [{"function": {"name": "f", "parameters": "{}"}}]},
            "tools[0].function.parameters",
        ),
        (CHAT, {"tools": [weather], "tool_choice": 5}, "tool_choice"),
        (CHAT, {"tools": [weather], "tool_choice": {"type": "x"}}, "tool_choice"),
        (CHAT, {"tools": [weather], "tool_choice": "other"}, "tool_choice"),
        (CHAT, {"timeout_s": 0}, "timeout_s"),
        ([{"role": "wizard", "content": "x"}], {}, "messages"),
    ],
)
def test_what_is_refused_is_named(messages: Any, options: dict[str, Any], field: str) -> None:
    with (
        scripted(ANSWERS) as (_, address),
        Client(address) as client,
        pytest.raises(InvalidArgumentError) as caught,
    ):
        client.chat(messages, **options)
    assert caught.value.field == field
    assert caught.value.message.startswith(field)


class DialectReader:
    """Reads what one template wrote as the coordinator does."""

    def __init__(self, recorded: RecordedCalls) -> None:
        self._dialect = Dialect.of(recorded.source)
        self._text = recorded.output

    def parts(self) -> list[OutputPart]:
        ids = iter(range(9))
        reader = OutputReader(
            self._dialect,
            tools=TOOLS,
            starts_in_reasoning=False,
            new_id=lambda: f"call_{next(ids)}",
        )
        found: list[OutputPart] = []
        for start in range(0, len(self._text), 5):
            found += reader.push(self._text[start : start + 5])
        return [*found, *reader.flush()]


def test_every_recorded_format_comes_out_as_the_calls_that_it_was_written_of() -> None:
    recorded = recorded_calls()
    scripts = [DialectReader(one).parts() for one in recorded]

    def get_weather(city: str, days: int, opts: dict[str, object]) -> None:
        """Tells the weather."""

    def other_fn(x: float) -> None:
        """Does something else."""

    with BackgroundServer(SpokenEngine(*scripts)) as server, Client(server.address) as client:
        for one in recorded:
            done = client.chat(CHAT, tools=[get_weather, other_fn], max_rounds=1)
            assert len(done.tool_calls) == one.num_calls, one.template
            called = [call.parsed_arguments for call in done.tool_calls]
            assert called == [*ARGUMENTS[: one.num_calls]], one.template


def test_parts_of_joined_events_keep_their_order() -> None:
    script: Sequence[OutputPart] = [
        ContentPart("a"),
        ReasoningPart("b"),
        ContentPart("c"),
        CallBegins(0, "call_1", "f"),
        ArgumentsPart(0, "{}"),
        CallEnds(0),
        ContentPart("d"),
    ]
    with (
        BackgroundServer(SpokenEngine(script)) as server,
        Client(server.address) as client,
        client.generate(CHAT, divide_output=True) as stream,
    ):
        parts = [part for event in stream for part in event.parts]
        done = stream.result()
    assert [type(part).__name__ for part in parts] == [type(part).__name__ for part in script]
    assert (done.text, done.reasoning) == ("acd", "b")
    assert done.tool_calls == (ToolCall(call_id="call_1", name="f", arguments="{}"),)


def test_a_completion_that_is_not_divided_has_no_parts() -> None:
    with BackgroundServer(EchoEngine()) as server, Client(server.address) as client:
        with client.generate("ab", max_tokens=2) as stream:
            assert [event.parts for event in stream] == [(), ()]
        spec: RequestSpec = server.engine.specs[0]
    assert not spec.divides_output
