"""Takes requests into the engine: checks, tokenizes, compiles the grammar, places on a lane."""

import time
from collections.abc import Callable
from functools import partial

from coordinator.constraint.grammar_compiler import GrammarCompiler
from coordinator.constraint.token_constraint import TokenConstraint
from coordinator.core.drafter import MakeDrafter
from coordinator.core.request import FinishReason, Request
from coordinator.core.request_spec import RequestSpec
from coordinator.core.sequence import Sequence
from coordinator.core.turn import Turn
from coordinator.engine.admission import Admission
from coordinator.engine.dispatcher import Dispatcher
from coordinator.engine.live_request import LiveRequest
from coordinator.engine.live_requests import LiveRequests
from coordinator.engine.outage import Outage
from coordinator.observe.observer import Observers
from coordinator.scheduler.config import SchedulerConfig
from coordinator.scheduler.prefix_index import block_hashes
from coordinator.text.conversations import Conversation, Conversations
from stagecoach.contract.errors import InvalidArgumentError, StagecoachError, UnavailableError


class Intake:
    """Takes requests in, until it is closed. On the engine's event loop.

    Args:
        admission: Validates requests.
        grammars: Compiles the grammars of requests.
        outage: Says when none is taken.
        dispatcher: Places them.
        requests: Where they live from then on.
        observers: Told of each that is taken, and of each that is not.
        limits: Limits of each pipeline's scheduler.
        num_stages: Stages of each pipeline.
        vocab_size: Logits in a row.
        conversations: Says what the outputs of conversations match, and makes the text of all.
        make_drafter: Makes what guesses tokens of a request; None: no token is guessed.
        clock: Nanoseconds of the one clock of requests and lanes.
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
        limits: SchedulerConfig,
        num_stages: int,
        vocab_size: int,
        conversations: Conversations,
        make_drafter: MakeDrafter | None,
        clock: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        self._admission = admission
        self._grammars = grammars
        self._outage = outage
        self._dispatcher = dispatcher
        self._requests = requests
        self._observers = observers
        self._limits = limits
        self._num_stages = num_stages
        self._vocab_size = vocab_size
        self._conversations = conversations
        self._make_drafter = make_drafter
        self._clock = clock
        self._is_closed = False

    def close(self) -> None:
        """Takes no more requests, those included that are being prepared."""
        self._is_closed = True

    async def submit(self, spec: RequestSpec) -> LiveRequest:
        """Takes a request in; see `Engine.submit`. To cancel the call is to end all work for it."""
        arrival_ns = self._clock()
        try:
            request = await self._admitted(spec, arrival_ns)
            names = await self._block_names(request)
            conversation = await self._conversations.plan(spec, request.prompt_token_ids)
            constraint = await self._constraint(spec, conversation)
            try:
                live = self._start(spec, request, names, conversation, constraint)
            except BaseException:
                if constraint is not None:
                    constraint.close()
                raise
        except StagecoachError as error:
            self._observers.request_refused(error)
            raise
        self._observers.request_accepted(live.request_id, live.sequence.num_prompt_tokens)
        if request.wants_nothing:
            self._requests.finish(live, FinishReason.LENGTH)
        return live

    async def _admitted(self, spec: RequestSpec, arrival_ns: int) -> Request:
        """The valid request that a client asks for."""
        self._check_open()
        self._check_new(spec.request_id)
        self._admission.check(spec)
        prompt_token_ids = await self._admission.encode(spec.prompt)
        if spec.grammar is not None:
            self._grammars.check_model(spec.grammar)
        request = self._admission.admit(spec, prompt_token_ids, arrival_ns=arrival_ns)
        self._limits.check_length(request)
        return request

    async def _block_names(self, request: Request) -> list[bytes]:
        """Names the KV blocks of a prompt, so that the scheduler need not do it at one go."""
        names: list[bytes] = []
        if not self._limits.prefix_cache:
            return names
        turn = Turn()
        block_size = self._limits.kv_block_size
        for name in block_hashes(request.cache_salt, request.prompt_token_ids, block_size):
            names.append(name)
            await turn.give_way()
        return names

    async def _constraint(
        self, spec: RequestSpec, conversation: Conversation | None
    ) -> TokenConstraint | None:
        grammar = spec.grammar if conversation is None else conversation.plan.grammar
        if grammar is None:
            return None
        return await self._grammars.compile(grammar, ignore_eos=spec.ignore_eos)

    def _start(
        self,
        spec: RequestSpec,
        request: Request,
        block_names: list[bytes],
        conversation: Conversation | None,
        constraint: TokenConstraint | None,
    ) -> LiveRequest:
        """Queues a valid request, if the engine would still take it."""
        self._check_open()
        self._check_new(request.request_id)
        sequence = Sequence(request=request, block_hashes=block_names)
        live = LiveRequest.of(
            sequence,
            num_stages=self._num_stages,
            vocab_size=self._vocab_size,
            text=self._conversations.text(spec, conversation, min_tokens=request.min_tokens),
            constraint=constraint,
            relaxed_fields=() if constraint is None else constraint.relaxed_fields,
            on_cancel=partial(self._requests.cancel, request.request_id),
            clock=self._clock,
        )
        if self._make_drafter is not None and live.sampler.looks_ahead:
            sequence.drafter = self._make_drafter(
                request.prompt_token_ids, sequence.output_token_ids
            )
        self._dispatcher.place(sequence)
        self._requests.add(live)
        return live

    def _check_open(self) -> None:
        if self._is_closed:
            raise UnavailableError("the coordinator is shutting down")
        self._outage.check()
        self._dispatcher.check_room()

    def _check_new(self, request_id: str | None) -> None:
        """Refuses an id that a client or a scheduler still knows: neither forgets it first."""
        if request_id is not None and (
            request_id in self._requests or self._dispatcher.holds(request_id)
        ):
            raise InvalidArgumentError(f"request_id {request_id!r} is in use", field="request_id")
