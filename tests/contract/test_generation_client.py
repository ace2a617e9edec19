"""The SDK, synchronous and asyncio, against a real server."""

import asyncio
import gc
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from coordinator.core.request_spec import TextPrompt
from coordinator.core.sampling_params import SamplingParams
from stagecoach.client import (
    AsyncClient,
    ChatMessage,
    Client,
    Completion,
    DeadlineExceededError,
    FinishReason,
    IncompatibleError,
    InvalidArgumentError,
    PromptLike,
    QueueFullError,
    RequestAbortedError,
    StageState,
    TokenEvent,
    UnavailableError,
)
from tests.contract.echo_engine import EchoEngine, serving

DEADLINE_S = 90.0

UNUSED_ADDRESS = "127.0.0.1:1"


class BackgroundServer:
    """A server on an event loop of its own thread, so that synchronous callers may wait."""

    def __init__(self, engine: EchoEngine, listen: str = "127.0.0.1:0") -> None:
        self.engine = engine
        self.address = listen
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    def __enter__(self) -> "BackgroundServer":
        self._thread.start()
        assert self._started.wait(DEADLINE_S)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends the server; does nothing when it has ended."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(DEADLINE_S)

    def stand_still(self, seconds: float) -> None:
        """Lets the event loop do nothing for a while, beginning soon."""
        self._loop.call_soon_threadsafe(time.sleep, seconds)

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        async with serving(self.engine, listen=self.address) as self.address:
            self._started.set()
            await self._stop.wait()


@pytest.fixture
def server() -> Iterator[BackgroundServer]:
    with BackgroundServer(EchoEngine()) as server:
        yield server


@pytest.fixture
def engine(server: BackgroundServer) -> EchoEngine:
    return server.engine


@pytest.fixture
def client(server: BackgroundServer) -> Iterator[Client]:
    with Client(server.address) as client:
        yield client


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


async def until_async(condition: Callable[[], bool]) -> None:
    await asyncio.to_thread(until, condition)


def check_completion(completion: Completion) -> None:
    """The completion of "abé" with five tokens."""
    assert completion.text == "abéa"
    assert completion.token_ids == (97, 98, 0xC3, 0xA9, 97)
    assert completion.finish_reason is FinishReason.LENGTH
    assert completion.usage.num_prompt_tokens == 4
    assert completion.usage.num_completion_tokens == 5
    assert completion.usage.num_cached_tokens == completion.usage.num_prompt_tokens - 1
    assert completion.request_id == "mine"
    timings = completion.timings
    assert timings.time_to_first_token_ns == 5_000_000
    assert [stage.wire_ns for stage in timings.stages] == [3_000, 6_000]
    assert timings.other_ns == 100_000_000 - 90_021_000 - 600_000
    assert completion.tokens_per_second == pytest.approx(4 / 0.1)  # 4 more tokens in 100 ms


def test_a_stream_yields_every_token_and_then_the_completion(client: Client) -> None:
    with client.generate("abé", max_tokens=5, request_id="mine") as stream:
        events = list(stream)
        check_completion(stream.result())
    assert [event.token_ids for event in events] == [(97,), (98,), (0xC3,), (0xA9,), (97,)]
    assert [event.text for event in events] == ["a", "b", "", "é", "a"]
    assert (stream.text, stream.request_id) == ("abéa", "mine")


def test_text_that_was_held_back_is_a_last_event_without_tokens(client: Client) -> None:
    with client.generate("é", max_tokens=1) as stream:
        events = list(stream)
    assert events[-1] == TokenEvent(token_ids=(), text="\N{REPLACEMENT CHARACTER}")
    assert "".join(event.text for event in events) == stream.text == stream.result().text


def test_complete_waits_for_the_end(client: Client) -> None:
    check_completion(client.complete("abé", max_tokens=5, request_id="mine"))


@pytest.mark.parametrize(
    ("prompt", "echoed"),
    [
        ("hi", "hi"),
        ([104, 105], "hi"),
        ((104, 105), "hi"),
        ([{"role": "user", "content": "hi"}], "user: hi\n"),
        ([ChatMessage(role="user", content="hi")], "user: hi\n"),
        ([{"role": "user", "content": "hi", "name": "Ada"}], "Ada: hi\n"),
        ([ChatMessage(role="user", content="hi", name="Ada")], "Ada: hi\n"),
    ],
)
def test_every_kind_of_prompt_is_sent(
    client: Client, engine: EchoEngine, prompt: PromptLike, echoed: str
) -> None:
    engine.shows_names = True
    token_ids = client.tokenize(prompt)
    assert bytes(token_ids).decode() == echoed
    assert client.complete(prompt, max_tokens=len(token_ids)).text == echoed


def test_options_reach_the_engine_and_unset_ones_do_not(client: Client, engine: EchoEngine) -> None:
    client.complete(
        "x",
        max_tokens=1,
        min_tokens=1,
        temperature=0.5,
        top_k=3,
        min_p=None,
        logit_bias={7: 1.5},
        seed=2**64 - 1,
        stop="end",
        stop_token_ids=[9],
        ignore_eos=True,
    )
    (spec,) = engine.specs
    assert spec.prompt == TextPrompt(text="x")
    assert spec.sampling == SamplingParams(
        temperature=0.5, top_k=3, logit_bias={7: 1.5}, seed=2**64 - 1
    )
    assert (spec.stop, spec.stop_token_ids, spec.ignore_eos) == (("end",), (9,), True)
    assert spec.min_tokens == 1


def test_leaving_a_loop_cancels_the_request(client: Client, engine: EchoEngine) -> None:
    engine.delay_s = 0.01
    for _event in client.generate("abc"):
        break
    until(lambda: len(engine.specs) == 1 and not engine.running)


def test_closing_a_stream_cancels_the_request_and_ends_iteration(
    client: Client, engine: EchoEngine
) -> None:
    engine.delay_s = 0.01
    stream = client.generate("abc")
    next(stream)
    stream.close()
    with pytest.raises(RequestAbortedError):
        list(stream)
    until(lambda: not engine.running)
    stream.close()


def test_closing_after_the_end_changes_nothing(client: Client) -> None:
    stream = client.generate("abc", max_tokens=2)
    first = stream.result()
    stream.close()
    assert stream.result() is first


def test_errors_are_typed_and_name_the_field(client: Client) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        client.complete("x", temperature=-1.0)
    assert caught.value.field == "temperature"


def test_errors_of_the_engine_keep_their_class(client: Client, engine: EchoEngine) -> None:
    engine.failure = QueueFullError("full")
    with pytest.raises(QueueFullError, match=r"^full$"):
        client.complete("x")


def test_a_server_that_is_no_coordinator_is_called_so() -> None:
    other = grpc.server(ThreadPoolExecutor(1))
    port = other.add_insecure_port("127.0.0.1:0")
    other.start()
    try:
        with (
            Client(f"127.0.0.1:{port}") as client,
            pytest.raises(IncompatibleError, match=rf"127.0.0.1:{port} does not know this call"),
        ):
            client.status()
    finally:
        other.stop(None).wait()


def test_a_deadline_is_a_typed_error(client: Client, engine: EchoEngine) -> None:
    engine.delay_s = 0.01
    with pytest.raises(DeadlineExceededError):
        client.complete("abc", timeout_s=0.2)
    until(lambda: not engine.running)


def test_a_coordinator_that_is_not_there_is_unavailable_and_named() -> None:
    with Client(UNUSED_ADDRESS) as client:
        with pytest.raises(UnavailableError, match=f"^coordinator at {UNUSED_ADDRESS}: "):
            client.complete("x")
        with pytest.raises(UnavailableError):
            client.tokenize("x")
        with pytest.raises(UnavailableError):
            client.status()


def test_waiting_for_a_coordinator_ends_at_the_deadline_with_the_reason() -> None:
    with Client(UNUSED_ADDRESS) as client, pytest.raises(DeadlineExceededError, match=r"0\.3 s"):
        client.wait_until_ready(timeout_s=0.3)


def test_waiting_ends_when_the_coordinator_says_that_it_is_ready(
    client: Client, engine: EchoEngine
) -> None:
    engine.is_ready = False
    with pytest.raises(DeadlineExceededError, match="is not ready"):
        client.wait_until_ready(timeout_s=1.0)
    threading.Timer(0.2, setattr, (engine, "is_ready", True)).start()
    assert client.wait_until_ready(timeout_s=DEADLINE_S).ready


def test_a_closed_client_refuses_every_call_with_a_typed_error() -> None:
    client = Client(UNUSED_ADDRESS)
    client.close()
    for call in (
        lambda: client.generate("hi"),
        lambda: client.complete("hi"),
        lambda: client.embed("hi"),
        lambda: client.tokenize("hi"),
        client.status,
        client.watch_steps,
        lambda: client.wait_until_ready(5.0),
    ):
        with pytest.raises(RequestAbortedError, match="the client is closed"):
            call()


def test_status_tells_known_and_unknown_stages(client: Client) -> None:
    status = client.status()
    known, unknown = status.stages
    assert (known.layers, known.device, known.state) == ((0, 2), "cpu (1 threads)", "ready")
    assert (unknown.layers, unknown.pid, unknown.state) == (None, None, StageState.LOST)
    assert (status.num_waiting, status.tokens_per_second) == (3, 7.5)
    assert (status.num_free_kv_blocks, status.num_cached_kv_blocks) == (200, 120)
    assert (status.num_prefix_query_tokens, status.num_prefix_hit_tokens) == (90, 30)
    assert (status.num_draft_tokens, status.num_accepted_draft_tokens) == (40, 20)


def test_threads_may_share_a_client(client: Client) -> None:
    texts: dict[str, str] = {}

    def complete(prompt: str) -> None:
        texts[prompt] = client.complete(prompt, max_tokens=8).text

    prompts = ["abcd", "efgh", "ijkl", "mnop"]
    threads = [threading.Thread(target=complete, args=(prompt,)) for prompt in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert texts == {prompt: prompt * 2 for prompt in prompts}


INTERRUPTED = """
import signal, sys
import grpc._channel
from stagecoach import Client

start_thread = grpc._channel._run_channel_spin_thread

def interrupted(state):
    signal.raise_signal(signal.SIGINT)  # gRPC has the call, and nobody takes its events yet
    start_thread(state)

grpc._channel._run_channel_spin_thread = interrupted
try:
    with Client(sys.argv[1]) as client:
        stream = getattr(client, sys.argv[2])(*sys.argv[3:])
        for _ in stream:
            pass
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.parametrize("call", [("generate", "a prompt"), ("watch_steps",)])
def test_ctrl_c_while_a_stream_is_started_does_not_keep_a_client_from_closing(
    server: BackgroundServer, call: tuple[str, ...]
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, server.address, *call],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("interrupted\n", "", 0)


async def test_an_async_stream_yields_every_token_and_then_the_completion() -> None:
    async with serving(EchoEngine()) as address, AsyncClient(address) as client:
        async with client.generate("abé", max_tokens=5, request_id="mine") as stream:
            events = [event async for event in stream]
            check_completion(await stream.result())
        check_completion(await client.complete("abé", max_tokens=5, request_id="mine"))
    assert [event.text for event in events] == ["a", "b", "", "é", "a"]


async def test_async_leaving_a_loop_cancels_the_request() -> None:
    engine = EchoEngine(delay_s=0.01)
    async with serving(engine) as address, AsyncClient(address) as client:
        async for _event in client.generate("abc"):
            break
        gc.collect()
        await until_async(lambda: len(engine.specs) == 1 and not engine.running)


async def test_async_closing_a_stream_cancels_the_request_and_ends_iteration() -> None:
    engine = EchoEngine(delay_s=0.01)
    async with serving(engine) as address, AsyncClient(address) as client:
        stream = client.generate("abc")
        await anext(stream)
        stream.close()
        with pytest.raises(RequestAbortedError):
            await stream.result()
        await until_async(lambda: not engine.running)


async def test_async_closing_the_client_ends_its_streams_with_a_typed_error() -> None:
    async with serving(EchoEngine(delay_s=0.01)) as address:
        client = AsyncClient(address)
        stream = client.generate("abc")
        await anext(stream)
        await client.close()
        with pytest.raises(RequestAbortedError):
            await stream.result()


async def test_async_a_closed_client_refuses_every_call_with_a_typed_error() -> None:
    client = AsyncClient(UNUSED_ADDRESS)
    await client.close()
    with pytest.raises(RequestAbortedError, match="the client is closed"):
        client.generate("hi")
    for call in (
        client.complete("hi"),
        client.embed("hi"),
        client.tokenize("hi"),
        client.status(),
        client.watch_steps(),
        client.wait_until_ready(5.0),
    ):
        with pytest.raises(RequestAbortedError, match="the client is closed"):
            await call


async def test_cancelling_the_task_that_reads_cancels_the_request_and_the_task() -> None:
    engine = EchoEngine(delay_s=0.01)
    async with serving(engine) as address, AsyncClient(address) as client:
        task = asyncio.create_task(client.complete("abc"))
        await until_async(lambda: len(engine.running) == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until_async(lambda: not engine.running)


async def test_async_requests_run_side_by_side() -> None:
    async with serving(EchoEngine(delay_s=0.01)) as address, AsyncClient(address) as client:
        prompts = ["abcd", "efgh", "ijkl", "mnop"]
        completions = await asyncio.gather(*(client.complete(p, max_tokens=8) for p in prompts))
    assert [completion.text for completion in completions] == [prompt * 2 for prompt in prompts]


async def test_async_errors_are_typed() -> None:
    engine = EchoEngine()
    async with serving(engine) as address, AsyncClient(address) as client:
        with pytest.raises(InvalidArgumentError) as caught:
            await client.complete("x", top_p=3.0)
        assert caught.value.field == "top_p"
        engine.delay_s = 0.01
        with pytest.raises(DeadlineExceededError):
            await client.complete("abc", timeout_s=0.2)
        with pytest.raises(InvalidArgumentError):
            await client.tokenize([999])
    async with AsyncClient(UNUSED_ADDRESS) as client:
        with pytest.raises(UnavailableError):
            await client.status()
        with pytest.raises(DeadlineExceededError):
            await client.wait_until_ready(timeout_s=0.2)


async def test_async_tokenize_status_and_waiting_answer() -> None:
    async with serving(EchoEngine()) as address, AsyncClient(address) as client:
        assert await client.tokenize("ab") == [97, 98]
        assert (await client.status()).model_id == "echo"
        assert (await client.wait_until_ready(timeout_s=DEADLINE_S)).ready
