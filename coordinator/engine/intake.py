"""The way of a request into the engine: checked, tokenized, its grammar compiled, placed."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from coordinator.constraint.grammar_compiler import GrammarCompiler
from coordinator.constraint.token_constraint import TokenConstraint
from coordinator.core.request import Request
from coordinator.core.request_spec import RequestSpec
from coordinator.core.turn import Turn
from coordinator.engine.admission import Admission
from coordinator.engine.dispatcher import Dispatcher
from coordinator.engine.live_request import LiveRequest
from coordinator.engine.live_requests import LiveRequests
from coordinator.engine.outage import Outage
from coordinator.engine.preparing_stream import PreparingStream
from coordinator.engine.request_stream import RequestStream
from coordinator.observe.observer import Observers
from coordinator.pipeline.topology import Topology
from coordinator.scheduler.config import SchedulerConfig
from coordinator.scheduler.prefix_index import block_hashes
from coordinator.text.tokenizer import Tokenizer
from stagecoach.contract.errors import InvalidArgumentError, StagecoachError, UnavailableError

MAX_INLINE_TOKENS = 4096
"""A prompt up to this length is queued at once; naming the KV blocks of a longer one takes time."""


class Prepared(NamedTuple):
    """A request that can be queued."""

    request: Request
    constraint: TokenConstraint | None = None
    block_hashes: Sequence[bytes] = ()
    """Names of the KV blocks of its prompt, as far as they are known."""

    def discard(self) -> None:
        """Gives it up."""
        if self.constraint is not None:
            self.constraint.close()


class Intake:
    """Takes requests in, until it is closed. On the engine's event loop.

    Args:
        admission: Validates requests.
        grammars: Compiles the grammars of requests.
        outage: Says when none is taken.
        dispatcher: Places them.
        requests: Where they live from then on.
        observers: Told of each that is taken, and of each that is not.
        topology: The stages.
        limits: Of each pipeline.
        tokenizer: The model's; None when it serves token ids only.
        on_accepted: Called for each that was placed.
        on_cancel: Called with the id of each that its client cancels.
    """

    def __init__(
        self,
        *,
        admission: Admission,
        grammars: GrammarCompiler,
        outage: Outage,
        dispatcher: Dispatcher,
        requests: LiveRequests,
        observers: Observers,
        topology: Topology,
        limits: SchedulerConfig,
        tokenizer: Tokenizer | None,
        on_accepted: Callable[[], None],
        on_cancel: Callable[[str], None],
    ) -> None:
        self._admission = admission
        self._grammars = grammars
        self._outage = outage
        self._dispatcher = dispatcher
        self._requests = requests
        self._observers = observers
        self._topology = topology
        self._limits = limits
        self._tokenizer = tokenizer
        self._on_accepted = on_accepted
        self._on_cancel = on_cancel
        self._is_closed = False

    def close(self) -> None:
        """Takes no more requests."""
        self._is_closed = True

    def submit(self, spec: RequestSpec) -> RequestStream | PreparingStream[Prepared]:
        """See `Engine.submit`."""
        arrival_ns = time.perf_counter_ns()
        with self._refusals_told():
            self._check_open()
            self._check_new(spec.request_id)
            self._admission.check(spec)
            prompt_token_ids = self._admission.encode_now(spec.prompt)
            if spec.grammar is not None:
                self._grammars.check_model(spec.grammar)
            if (
                prompt_token_ids is not None
                and len(prompt_token_ids) <= MAX_INLINE_TOKENS
                and spec.grammar is None
            ):
                request = self._admission.admit(spec, prompt_token_ids, arrival_ns=arrival_ns)
                return self._start(Prepared(request))

        async def prepare() -> Prepared:
            with self._refusals_told():
                token_ids = prompt_token_ids
                if token_ids is None:
                    token_ids = await self._admission.encode(spec.prompt)
                request = self._admission.admit(spec, token_ids, arrival_ns=arrival_ns)
                self._limits.check_length(request)
                block_hashes = await self._named_blocks(request)
                constraint = None
                if spec.grammar is not None:
                    constraint = await self._grammars.compile(
                        spec.grammar, ignore_eos=spec.ignore_eos
                    )
            return Prepared(request, constraint, block_hashes)

        def start(prepared: Prepared) -> RequestStream:
            try:
                with self._refusals_told():
                    return self._start(prepared)
            except StagecoachError:
                prepared.discard()
                raise

        return PreparingStream(prepare, start, Prepared.discard)

    async def _named_blocks(self, request: Request) -> list[bytes]:
        """Names the KV blocks of a prompt, so that the scheduler need not do it at one go."""
        hashes: list[bytes] = []
        if not self._limits.prefix_cache:
            return hashes
        turn = Turn()
        for name in block_hashes(
            request.cache_salt, request.prompt_token_ids, self._limits.kv_block_size
        ):
            hashes.append(name)
            await turn.give_way()
        return hashes

    @contextmanager
    def _refusals_told(self) -> Iterator[None]:
        """Tells the observers of a request that is not taken."""
        try:
            yield
        except StagecoachError as error:
            self._observers.request_refused(error)
            raise

    def _start(self, prepared: Prepared) -> RequestStream:
        """Queues a valid request."""
        request, constraint, block_hashes = prepared
        self._check_open()
        self._check_new(request.request_id)
        sequence = self._dispatcher.place(request, block_hashes)
        request_id = request.request_id
        live = LiveRequest.of(
            sequence,
            num_stages=len(self._topology.infos),
            vocab_size=self._topology.vocab_size,
            tokenizer=self._tokenizer,
            constraint=constraint,
            on_cancel=lambda: self._on_cancel(request_id),
        )
        self._requests.add(live)
        self._on_accepted()
        self._observers.request_accepted(request_id, sequence.num_prompt_tokens)
        return live.stream

    def _check_open(self) -> None:
        if self._is_closed:
            raise UnavailableError("the coordinator is shutting down")
        self._outage.check()
        self._dispatcher.check_room()

    def _check_new(self, request_id: str | None) -> None:
        if request_id in self._requests:  # the scheduler forgets it before its end is sent
            raise InvalidArgumentError(f"request_id {request_id!r} is in use", field="request_id")
