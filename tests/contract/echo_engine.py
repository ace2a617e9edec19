"""A small, real engine for the doors: it says the prompt again, byte by byte, round and round.

Token ids are bytes. Nothing about it is canned: it validates, queues, streams, cancels and drains
as the contract of `GenerationEngine` asks.
"""

import asyncio
import codecs
import contextlib
import itertools
import math
import time
from array import array
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple

from coordinator.core.catalog import Catalog
from coordinator.core.events import (
    Accepted,
    Finished,
    GenerationEvent,
    TokenLogprobs,
    TokensEvent,
)
from coordinator.core.output_parts import OutputPart
from coordinator.core.prompt_logprobs import PromptLogprobs
from coordinator.core.request import FinishReason
from coordinator.core.request_spec import (
    ChatMessage,
    ChatPrompt,
    Prompt,
    RequestSpec,
    TextPrompt,
    TokenPrompt,
)
from coordinator.core.served_model import ServedModel
from coordinator.doors.access.caller_shares import CallerShares
from coordinator.doors.access.callers import Callers
from coordinator.doors.grpc.server import GenerationServer
from coordinator.engine.readiness import Readiness
from coordinator.observe.step_watch import StepHub, StepWatch
from coordinator.sampling.prompt_pooling import PromptPooling
from stagecoach.contract.address import Address
from stagecoach.contract.cluster_status import ModelStatus, StageState, StageStatus
from stagecoach.contract.errors import (
    ContextLengthExceededError,
    InvalidArgumentError,
    QueueFullError,
    UnavailableError,
)
from stagecoach.contract.layer_range import LayerRange
from stagecoach.contract.precision import Precision
from stagecoach.contract.protocol import PROTOCOL_VERSION
from stagecoach.contract.request_timings import RequestTimings, StepTotals
from stagecoach.contract.stage_info import StageInfo
from stagecoach.contract.stage_timings import NO_TIME, StageTimings
from stagecoach.contract.step_record import StageVisit, StepRecord
from stagecoach.security.tls_files import TlsFiles
from stagecoach.version import __version__
from tests.contract.catalogs import ServedEngine, open_catalog

VOCAB_SIZE = 256
HIDDEN_SIZE = 8
MAX_MODEL_LEN = 4096
MAX_NUM_WAITING = 8
END_TOKEN_ID = 0

TIMINGS = RequestTimings(
    queue_ns=1_000_000,
    time_to_first_token_ns=5_000_000,
    total_ns=105_000_000,
    num_steps=10,
    schedule_ns=100_000,
    sample_ns=200_000,
    detokenize_ns=300_000,
    step_ns=100_000_000,
    stages=(
        StageTimings(queue_ns=1_000, compute_ns=40_000_000, serialize_ns=2_000, wire_ns=3_000),
        StageTimings(queue_ns=4_000, compute_ns=50_000_000, serialize_ns=5_000, wire_ns=6_000),
    ),
    num_preemptions=1,
    num_replays=2,
    prefill=StepTotals(
        num_steps=1,
        schedule_ns=10_000,
        sample_ns=20_000,
        detokenize_ns=30_000,
        step_ns=10_000_000,
        stages=(
            StageTimings(queue_ns=100, compute_ns=4_000_000, serialize_ns=200, wire_ns=300),
            StageTimings(queue_ns=400, compute_ns=5_000_000, serialize_ns=500, wire_ns=600),
        ),
    ),
)


def stage_info(layers: LayerRange) -> StageInfo:
    return StageInfo(
        protocol_version=PROTOCOL_VERSION,
        model_id="echo",
        fingerprint="f" * 64,
        layers=layers,
        num_model_layers=4,
        hidden_size=HIDDEN_SIZE,
        vocab_size=VOCAB_SIZE,
        precision=Precision.of("float16", on_cpu=True),
        kv_block_size=16,
        num_kv_blocks=256,
        num_free_kv_blocks=80,
        max_num_seqs=8,
        max_num_batched_tokens=512,
        max_model_len=MAX_MODEL_LEN,
        device="cpu (1 threads)",
        emulated=False,
        version=__version__,
        pid=4321,
        weight_bytes=1 << 20,
        num_weights=1 << 18,
        kv_bytes=1 << 21,
        weight_digests={"layer 0": b"digest"},
        weights_revision="r" * 40,
        adds_noise=True,
        answers_prompt_logits=True,
        answers_hidden_sums=True,
        attention="gather",
        max_graph_seqs=1,
    )


class EchoStream:
    """The events of one request; `running` holds it from its start to its end."""

    def __init__(self, engine: "EchoEngine", spec: RequestSpec, prompt: list[int]) -> None:
        self._cancelled = asyncio.Event()
        self._engine = engine
        self._spec = spec
        self._events = self._generate(prompt)

    def __aiter__(self) -> "EchoStream":
        return self

    async def __anext__(self) -> GenerationEvent:
        return await anext(self._events)

    @property
    def is_cancelled(self) -> bool:
        return self._cancelled.is_set()

    def cancel(self) -> None:
        self._cancelled.set()
        self._engine.running.discard(self)

    def _max_tokens(self, prompt: list[int]) -> int:
        room = self._engine.max_model_len - len(prompt)
        wanted = self._spec.max_tokens
        return room if wanted is None else min(wanted, room)

    def _output(self, prompt: list[int]) -> Iterator[int]:
        stops = set(self._spec.stop_token_ids)
        if not self._spec.ignore_eos:
            stops.add(END_TOKEN_ID)
        endless = itertools.islice(itertools.cycle(prompt), self._max_tokens(prompt))
        return itertools.takewhile(lambda token_id: token_id not in stops, endless)

    async def _generate(self, prompt: list[int]) -> AsyncIterator[GenerationEvent]:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        yield Accepted(request_id=self._spec.request_id or "echo-1", prompt_token_ids=tuple(prompt))
        if self._spec.prompt_logprobs is not None and len(prompt) > 1:
            yield self._prompt_logprobs(prompt, self._spec.prompt_logprobs)
        num_tokens = num_chars = 0
        for token_id in self._output(prompt):
            await self._pause()
            if self.is_cancelled:
                yield self._finished(FinishReason.ABORT, prompt, num_tokens)
                return
            if self._engine.is_closed:
                raise UnavailableError("the coordinator is shutting down")
            if self._engine.failure is not None and num_tokens == self._engine.fail_after_tokens:
                raise self._engine.failure
            num_tokens += 1
            self._engine.publish_step(len(prompt) if num_tokens == 1 else 0)
            logprobs = self._engine.logprobs or self._logprobs(token_id)
            text = decoder.decode(bytes([token_id]))
            num_chars += len(text)
            yield TokensEvent(
                token_ids=(token_id,),
                text=text,
                logprobs=() if logprobs is None else (logprobs,),
                text_ends=() if logprobs is None else (num_chars,),
            )
        if self._spec.embedding is not None:
            await self._pause()
        self._engine.running.discard(self)
        is_full = num_tokens == self._max_tokens(prompt)
        reason = FinishReason.LENGTH if is_full else FinishReason.STOP
        yield self._finished(reason, prompt, num_tokens, decoder.decode(b"", final=True))

    def _logprobs(self, token_id: int) -> TokenLogprobs | None:
        """It is always certain of what comes next."""
        if self._spec.logprobs is None:
            return None
        return TokenLogprobs(0.0, [(token_id, 0.0)][: self._spec.logprobs])

    def _prompt_logprobs(self, prompt: list[int], num_top: int) -> PromptLogprobs:
        """In a prompt all bytes are equally likely to it, and the lowest come first."""
        logprob = -math.log(VOCAB_SIZE)
        num_tokens = len(prompt) - 1
        return PromptLogprobs(
            start=1,
            logprobs=num_tokens * [logprob],
            ranks=[token_id + 1 for token_id in prompt[1:]],
            num_top=num_top,
            top_token_ids=num_tokens * [*range(num_top)],
            top_logprobs=num_tokens * num_top * [logprob],
        )

    async def _pause(self) -> None:
        """Takes the time of a token, or less when the request is cancelled."""
        if not self._engine.delay_s:
            await asyncio.sleep(0)
            return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._cancelled.wait(), self._engine.delay_s)

    def _finished(
        self,
        reason: FinishReason,
        prompt: list[int],
        num_tokens: int,
        text: str = "",
        *,
        parts: tuple[OutputPart, ...] = (),
        num_calls: int = 0,
    ) -> Finished:
        return Finished(
            finish_reason=reason,
            text=text,
            parts=parts,
            num_calls=num_calls,
            num_prompt_tokens=len(prompt),
            num_completion_tokens=num_tokens,
            num_cached_tokens=len(prompt) - 1,
            timings=TIMINGS,
            embedding=self._embedding(prompt),
        )

    def _embedding(self, prompt: list[int]) -> Sequence[float] | None:
        """The hidden state of a byte is its bits, the lowest first."""
        params = self._spec.embedding
        if params is None:
            return None
        pooling = PromptPooling(params, len(prompt))
        for byte in prompt[params.first_position(len(prompt)) :]:
            pooling.add(array("f", [byte >> bit & 1 for bit in range(HIDDEN_SIZE)]))
        return pooling.embedding()


class Preparing:
    """The work for requests that cannot be taken at once: it lasts until it is let go."""

    def __init__(self) -> None:
        self.num_waiting = 0
        self.num_cancelled = 0
        self.go_on = asyncio.Event()

    async def wait(self) -> None:
        self.num_waiting += 1
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        finally:
            self.num_waiting -= 1


class EchoEngine:
    """A `GenerationEngine`.

    `failure` is raised by `submit`, or in the middle of a stream when `fail_after_tokens` is set.

    Args:
        delay_s: That a token takes.
        max_running: More requests at once are refused.
        names: Of its model, whose id is the first.
        begin: Tokens that it puts before a text.
        max_model_len: Most tokens of one request.
    """

    def __init__(
        self,
        *,
        delay_s: float = 0.0,
        max_running: int = 8,
        names: Sequence[str] = ("echo",),
        begin: Sequence[int] = (),
        max_model_len: int = MAX_MODEL_LEN,
    ) -> None:
        self.names = tuple(names)
        self.begin = tuple(begin)
        self.max_model_len = max_model_len
        self.delay_s = delay_s
        self.shows_names = False
        """Whether a conversation shows who speaks."""
        self.max_running = max_running
        self.preparing: Preparing | None = None
        """What every request waits for before it is taken."""
        self.failure: Exception | None = None
        self.fail_after_tokens: int | None = None
        self.logprobs: TokenLogprobs | None = None
        self.running: set[EchoStream] = set()
        self.specs: list[RequestSpec] = []
        self.is_closed = False
        self.readiness = Readiness()
        self.readiness.set(True)
        self.steps = StepHub()
        self.num_steps = 0

    @property
    def served_model(self) -> ServedModel:
        return ServedModel(
            model_id="echo",
            names=self.names,
            vocab_size=VOCAB_SIZE,
            max_model_len=self.max_model_len,
            has_tokenizer=True,
        )

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id])

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        await self.tokenize(TokenPrompt(token_ids=tuple(token_ids)))
        return bytes(token_ids).decode(errors="replace")

    async def submit(self, spec: RequestSpec) -> EchoStream:
        if self.preparing is not None:
            await self.preparing.wait()
        if self.failure is not None and self.fail_after_tokens is None:
            raise self.failure
        prompt = self._encode(spec.prompt)
        if len(prompt) >= self.max_model_len:
            raise ContextLengthExceededError(
                f"{len(prompt)} prompt tokens leave no room in {self.max_model_len}",
                num_prompt_tokens=len(prompt),
                limit=self.max_model_len,
            )
        if len(self.running) == self.max_running:
            raise QueueFullError(f"{self.max_running} requests wait already")
        self.specs.append(spec)
        stream = self.open_stream(spec, prompt)
        self.running.add(stream)
        return stream

    def open_stream(self, spec: RequestSpec, prompt: list[int]) -> EchoStream:
        return EchoStream(self, spec, prompt)

    async def tokenize(self, prompt: Prompt) -> list[int]:
        return self._encode(prompt)

    def _speaker(self, turn: ChatMessage) -> str:
        return turn.name if turn.name is not None and self.shows_names else turn.role

    def _encode(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, TextPrompt):
            return [*self.begin, *prompt.text.encode()]
        if isinstance(prompt, ChatPrompt):
            turns = (f"{self._speaker(turn)}: {turn.content}\n" for turn in prompt.messages)
            return list("".join(turns).encode())
        for token_id in prompt.token_ids:
            if token_id >= VOCAB_SIZE:
                raise InvalidArgumentError(
                    f"token id {token_id} is outside the vocabulary [0, {VOCAB_SIZE})",
                    field="prompt.token_ids",
                )
        return list(prompt.token_ids)

    def watch_steps(self) -> StepWatch:
        return self.steps.watch(time.perf_counter_ns())

    def publish_step(self, num_prefill_tokens: int) -> None:
        """Tells of the token that a request is about to get; its two stages take no time."""
        now_ns = time.perf_counter_ns()
        self.num_steps += 1
        visit = StageVisit(now_ns, now_ns, NO_TIME)
        self.steps.publish(
            StepRecord(
                micro_batch_id=self.num_steps,
                num_sequences=1,
                num_prefill_tokens=num_prefill_tokens,
                num_decode_tokens=0 if num_prefill_tokens else 1,
                started_ns=now_ns,
                scheduled_ns=now_ns,
                stages=(visit, visit),
                sampling_ns=now_ns,
                sampled_ns=now_ns,
                decided_ns=now_ns,
                emitting_ns=now_ns,
                emitted_ns=now_ns,
            )
        )

    @property
    def is_ready(self) -> bool:
        return self.readiness.is_ready

    @is_ready.setter
    def is_ready(self, is_ready: bool) -> None:
        self.readiness.set(is_ready)

    @property
    def problem(self) -> str:
        return "" if self.is_ready else "stage h:2 was lost"

    async def wait_ready(self, *, ready: bool) -> None:
        await self.readiness.wait(ready)

    async def status(self) -> ModelStatus:
        known = stage_info(LayerRange(0, 2))
        return ModelStatus(
            model_id="echo",
            names=self.names,
            ready=self.is_ready,
            problem=self.problem,
            has_tokenizer=True,
            stages=(
                StageStatus(
                    index=0,
                    address="h:1",
                    state=StageState.READY,
                    info=known,
                    num_cached_kv_blocks=120,
                ),
                StageStatus(index=1, address="h:2", state=StageState.LOST, info=None),
            ),
            num_running=len(self.running),
            num_waiting=3,
            max_num_seqs=8,
            num_kv_blocks=256,
            num_free_kv_blocks=200,
            num_cached_kv_blocks=120,
            max_model_len=self.max_model_len,
            num_finished=4,
            num_generated_tokens=5,
            num_preemptions=6,
            num_prefix_query_tokens=90,
            num_prefix_hit_tokens=30,
            num_draft_tokens=40,
            num_accepted_draft_tokens=20,
            tokens_per_second=7.5,
        )

    async def close(self, grace_s: float) -> None:
        for _ in range(int(grace_s / 0.005)):
            if not self.running:
                break
            await asyncio.sleep(0.005)
        self.is_closed = True
        self.steps.end(UnavailableError("the coordinator is shutting down"))


class BoundServer(NamedTuple):
    """A server that answers calls, and perhaps serves."""

    server: GenerationServer
    catalog: Catalog
    address: str

    async def serve(self, *engines: ServedEngine, shares: CallerShares | None = None) -> None:
        """Serves these engines from now on; see `open_catalog`."""
        open_catalog(self.catalog, engines, shares)
        await self.server.serve()

    async def stop(self, *, grace_s: float) -> None:
        """Drains and closes; see `GenerationServer.stop`."""
        await self.server.stop(grace_s=grace_s)


@asynccontextmanager
async def bound(
    listen: str = "127.0.0.1:0", *, tls: TlsFiles | None = None, callers: Callers | None = None
) -> AsyncIterator[BoundServer]:
    """A real server without an engine yet."""
    catalog = Catalog()
    server = GenerationServer(
        catalog,
        Address.parse(listen, field="listen"),
        max_model_len=MAX_MODEL_LEN,
        max_num_waiting=MAX_NUM_WAITING,
        tls=tls,
        callers=callers,
    )
    address = await server.start()
    try:
        yield BoundServer(server, catalog, address)
    finally:
        await server.stop(grace_s=0)


@asynccontextmanager
async def serving(
    *engines: ServedEngine,
    listen: str = "127.0.0.1:0",
    tls: TlsFiles | None = None,
    callers: Callers | None = None,
    shares: CallerShares | None = None,
) -> AsyncIterator[str]:
    """A real server around the engines; yields its address."""
    async with bound(listen, tls=tls, callers=callers) as server:
        await server.serve(*engines, shares=shares)
        yield server.address
