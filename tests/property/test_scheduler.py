"""The scheduler against a slow, obvious stage, under any order of events.

The stage is a dict from slot to tokens, beside the slot tables of a real one. It takes outputs in
the order of `schedule`; their results come back in any order, or the output fails, or everything
is lost at once. Slices that decode carry drafts, right ones and wrong ones, so that a sequence
takes several tokens at once. With the prefix cache, tokens come from a tiny alphabet, so that
prefixes collide.
"""

from dataclasses import dataclass
from typing import NamedTuple

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from coordinator.core.embedding import EmbeddingParams, Pooling
from coordinator.core.request import FinishReason, Request
from coordinator.core.sequence import Sequence, SequenceState
from coordinator.core.step import ScheduledSlice, SchedulerOutput
from coordinator.scheduler import Scheduler, SchedulerConfig, StepBudget
from coordinator.scheduler.policy import FirstComeFirstServed, Policy
from stage_server.core.batch import SequenceSlice
from stage_server.kv_cache.slot_tables import SlotTables
from stagecoach.contract.errors import KvFullError, StaleStateError
from stagecoach.contract.slot_ops import ForkSlot, FreeSlot, SlotOp, TruncateSlot
from tests.schedulers import ShortestFirst, adopt
from tests.scripted_drafts import ScriptedDrafter, flat

MAX_NUM_IN_FLIGHT = 4
SALTS = (None, "a", "b")

BUDGETS = st.builds(
    StepBudget,
    max_num_decodes=st.integers(1, 4),
    max_num_prefill_tokens=st.integers(1, 12),
    duration_ns=st.sampled_from([None, flat, flat]),
)


def next_token(token_ids: tuple[int, ...]) -> int:
    """A model of which every token depends on all before it."""
    return (sum((index + 1) * token for index, token in enumerate(token_ids)) * 31 + 7) % 3


def generate(request: Request) -> list[int]:
    """What the request's output must be, uninterrupted."""
    token_ids = tuple(request.prompt_token_ids)
    for _ in range(request.max_tokens):
        token_ids += (next_token(token_ids),)
    return list(token_ids[len(request.prompt_token_ids) :])


def verified_tokens(piece: ScheduledSlice, token_ids: tuple[int, ...]) -> tuple[int, ...]:
    """Samples row after row, up to the first token that the draft after it is not.

    Args:
        piece: The slice.
        token_ids: All of its sequence, those of the slice last.
    """
    tokens: list[int] = []
    for end in range(len(token_ids) - piece.num_sampled_rows + 1, len(token_ids) + 1):
        tokens.append(next_token(token_ids[:end]))
        if token_ids[end : end + 1] != (tokens[-1],):
            break
    return tuple(tokens)


LAST, MEAN = (EmbeddingParams(pooling=one) for one in (Pooling.LAST, Pooling.MEAN))


class Drafts(NamedTuple):
    """Guesses for every slice that decodes."""

    num_right: int
    num_wrong: int

    def __call__(self, token_ids: tuple[int, ...]) -> tuple[int, ...]:
        """Guesses what follows."""
        whole = token_ids
        for index in range(self.num_right + self.num_wrong):
            right = next_token(whole)
            whole += (right if index < self.num_right else (right + 1) % 3,)
        return whole[len(token_ids) :]


class Stage:
    """The tokens of each slot, as every stage holds them, and the slot tables of a real stage."""

    def __init__(self, config: SchedulerConfig) -> None:
        self.slots: dict[int, tuple[tuple[str | None, int], ...]] = {}
        self.tables = SlotTables(config.num_kv_blocks, config.kv_block_size)

    def forward(
        self, output: SchedulerOutput, salts: dict[str, str | None], *, exactly: bool
    ) -> dict[str, tuple[int, ...]] | None:
        """Does the slot operations, then runs.

        Args:
            output: What runs next.
            salts: By request id; no other sequence may see what is held under a salt.
            exactly: Whether every slice must start where its slot ends and all blocks must fit.
                Not so behind an output that failed, the operations of which may be missing.

        Returns:
            Tokens for each slice with sampled rows; None when the stage refused, and did nothing.
        """
        pieces = [
            SequenceSlice(piece.kv_slot, piece.start_position, len(piece.token_ids))
            for piece in output.slices
        ]
        try:
            plan = self.tables.apply(output.slot_ops, pieces)
        except (StaleStateError, KvFullError):
            assert not exactly
            return None
        assert not plan.copies, "no shared block is ever written"
        self.tables.check_integrity()
        for op in output.slot_ops:
            self.do(op)
        return {
            piece.request_id: verified_tokens(piece, token_ids)
            for piece in output.slices
            if (token_ids := self.run(piece, salts[piece.request_id], exactly))
            and piece.num_sampled_rows
        }

    def do(self, op: SlotOp) -> None:
        match op:
            case FreeSlot(kv_slot):
                self.slots.pop(kv_slot, None)
            case TruncateSlot(kv_slot, num_tokens):
                self.slots[kv_slot] = self.slots[kv_slot][:num_tokens]
            case ForkSlot(source, target, num_tokens):
                assert target not in self.slots
                self.slots[target] = self.slots[source][:num_tokens]

    def run(self, piece: ScheduledSlice, salt: str | None, exactly: bool) -> tuple[int, ...]:
        held = self.slots.get(piece.kv_slot, ())[: piece.start_position]
        assert len(held) == piece.start_position or not exactly
        self.slots[piece.kv_slot] = held + tuple((salt, token) for token in piece.token_ids)
        assert {holder for holder, _ in self.slots[piece.kv_slot]} == {salt}
        return tuple(token for _, token in self.slots[piece.kv_slot])


@dataclass(frozen=True, slots=True, kw_only=True)
class InFlight:
    """An output on its way, and what the stage made of it; None: it will fail."""

    output: SchedulerOutput
    sampled: dict[str, tuple[int, ...]] | None


class SchedulerMachine(RuleBasedStateMachine):
    """Any order of add, schedule, results, failures, aborts, and the loss of a stage."""

    @initialize(
        max_num_batched_tokens=st.integers(1, 24),
        max_num_seqs=st.integers(1, 6),
        kv_block_size=st.integers(1, 4),
        num_kv_blocks=st.integers(4, 20),
        max_num_waiting=st.integers(1, 12),
        num_more_slots=st.integers(0, 3),
        num_more_rows=st.none() | st.integers(0, 6),
        prefix_cache=st.sampled_from([True, True, False]),
        min_awaited_tokens=st.sampled_from([1, 1, 5, 100]),
        policy=st.sampled_from([FirstComeFirstServed(), ShortestFirst()]),
    )
    def start(
        self,
        max_num_batched_tokens: int,
        max_num_seqs: int,
        kv_block_size: int,
        num_kv_blocks: int,
        max_num_waiting: int,
        num_more_slots: int,
        num_more_rows: int | None,
        prefix_cache: bool,
        min_awaited_tokens: int,
        policy: Policy,
    ) -> None:
        self.config = SchedulerConfig(
            max_num_batched_tokens=max_num_batched_tokens,
            max_num_seqs=max_num_seqs,
            max_model_len=40,
            kv_block_size=kv_block_size,
            num_kv_blocks=num_kv_blocks,
            num_kv_slots=max_num_seqs + num_more_slots,
            max_num_sampled_rows=None if num_more_rows is None else max_num_seqs + num_more_rows,
            prefix_cache=prefix_cache,
            min_awaited_tokens=min_awaited_tokens,
        )
        self.max_num_waiting = max_num_waiting
        self.scheduler = Scheduler(self.config, policy=policy)
        self.stage = Stage(self.config)
        self.sequences: dict[str, Sequence] = {}
        self.salts: dict[str, str | None] = {}
        self.num_finishes: dict[str, int] = {}
        self.scored: dict[str, list[tuple[int, int]]] = {}
        """Positions and tokens of prompts whose log-probabilities came back, by request id."""
        self.pooled: dict[str, list[int]] = {}
        """Positions of prompts whose hidden states came back, by request id."""
        self.in_flight: list[InFlight] = []
        self.drafts = Drafts(0, 0)

    @precondition(lambda self: self.scheduler.num_waiting < self.max_num_waiting)
    @rule(data=st.data())
    def add(self, data: st.DataObject) -> None:
        limit = min(self.config.max_model_len, self.config.num_kv_tokens)
        num_prompt = data.draw(st.integers(1, 8) | st.integers(1, limit), label="num_prompt")
        num_prompt = min(num_prompt, limit - 1)
        prompt: list[int] = []
        salt = data.draw(st.sampled_from(SALTS), label="salt")
        if self.sequences and data.draw(st.integers(0, 3), label="continues another") > 0:
            other = data.draw(st.sampled_from([*self.sequences.values()]), label="another")
            prompt = other.token_ids(0, other.num_tokens)
            salt = data.draw(st.sampled_from([other.request.cache_salt] * 4 + [salt]), label="salt")
        prompt += data.draw(
            st.lists(st.integers(0, 2), min_size=num_prompt, max_size=num_prompt), label="prompt"
        )
        request = Request(
            request_id=f"r{len(self.sequences)}",
            prompt_token_ids=tuple(prompt[:num_prompt]),
            cache_salt=salt,
            max_tokens=data.draw(st.integers(1, min(10, limit - num_prompt)), label="max_tokens"),
            prompt_logprobs=data.draw(st.sampled_from([None, None, 0, 2]), label="logprobs"),
            embedding=data.draw(st.sampled_from([None, None, LAST, MEAN]), label="embedding"),
        )
        self.scored[request.request_id] = []
        self.pooled[request.request_id] = []
        sequence = self.sequences[request.request_id] = adopt(self.scheduler, request)
        sequence.drafter = ScriptedDrafter(
            request.prompt_token_ids, sequence.output_token_ids, lambda whole: self.drafts(whole)
        )
        self.salts[request.request_id] = request.cache_salt
        self.num_finishes[request.request_id] = 0

    @precondition(lambda self: len(self.in_flight) < MAX_NUM_IN_FLIGHT)
    @rule(
        budget=st.none() | BUDGETS,
        drafts=st.builds(Drafts, st.integers(0, 3), st.integers(0, 2)),
        fate=st.sampled_from(["runs"] * 6 + ["fails before", "fails after"]),
    )
    def schedule(self, budget: StepBudget | None, drafts: Drafts, fate: str) -> None:
        self.drafts = drafts
        output = self.scheduler.schedule(budget)
        if output is None:
            assert self.in_flight or not self.scheduler.has_work, "stuck"
            return
        self.check(output, budget)
        sampled = self.forward(output) if fate != "fails before" else None
        if fate == "fails after":
            sampled = None
        self.in_flight.append(InFlight(output=output, sampled=sampled))

    @precondition(lambda self: not self.in_flight)
    @rule(num_steps=st.integers(1, 8))
    def run_undisturbed(self, num_steps: int) -> None:
        for _ in range(num_steps):
            output = self.scheduler.schedule()
            if output is not None:
                self.check(output, None)
                self.land(InFlight(output=output, sampled=self.forward(output)))

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data(), stage_is_lost=st.sampled_from([False] * 9 + [True]))
    def complete(self, data: st.DataObject, stage_is_lost: bool) -> None:
        if stage_is_lost:
            self.give_up_everything()
            if data.draw(st.booleans(), label="this one, and not another"):
                self.stage = Stage(self.config)
            return
        index = data.draw(st.integers(0, len(self.in_flight) - 1), label="in flight")
        self.land(self.in_flight.pop(index))

    @precondition(lambda self: self.scheduler.has_work)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        alive = [name for name, sequence in self.sequences.items() if not sequence.finish_reason]
        if alive:
            self.finish(data.draw(st.sampled_from(alive), label="id"), FinishReason.ABORT)

    @invariant()
    def is_whole(self) -> None:
        self.scheduler.check_integrity()
        if not self.in_flight and not self.scheduler.has_work:
            self.check_that_only_prefixes_are_held()

    def teardown(self) -> None:
        """Whatever happened: everything ends, exactly once, with the right tokens."""
        if not hasattr(self, "scheduler"):
            return
        while self.scheduler.has_work or self.in_flight:
            output = self.scheduler.schedule()
            if output is not None:
                self.check(output, None)
                self.in_flight.append(InFlight(output=output, sampled=self.forward(output)))
            assert self.in_flight, "stuck"
            self.land(self.in_flight.pop(0))
            self.scheduler.check_integrity()
        self.check_that_only_prefixes_are_held()
        assert self.scheduler.num_free_kv_blocks == self.config.num_kv_blocks
        for request_id, sequence in self.sequences.items():
            assert sequence.state is SequenceState.FINISHED
            assert self.num_finishes[request_id] == 1
            whole = generate(sequence.request)
            assert sequence.output_token_ids == whole[: len(sequence.output_token_ids)]
            is_whole = sequence.finish_reason is FinishReason.LENGTH
            if is_whole:
                assert sequence.output_token_ids == whole
            self.check_scored(sequence, is_whole=is_whole)

    def give_up_everything(self) -> None:
        running = self.scheduler.num_running
        assert len(self.scheduler.preempt_all()) <= running
        assert self.scheduler.num_running == 0
        assert self.scheduler.num_free_kv_blocks == self.config.num_kv_blocks
        for late in self.in_flight:
            assert self.scheduler.update(late.output, late.sampled or {}) == []
        self.in_flight.clear()

    def forward(self, output: SchedulerOutput) -> dict[str, tuple[int, ...]] | None:
        behind_failure = any(other.sampled is None for other in self.in_flight)
        sampled = self.stage.forward(output, self.salts, exactly=not behind_failure)
        if not behind_failure:
            vacant = self.scheduler.num_free_kv_blocks - self.scheduler.num_cached_kv_blocks
            assert self.stage.tables.num_free_blocks >= vacant
        return sampled

    def land(self, item: InFlight) -> None:
        if item.sampled is None:
            self.scheduler.requeue(item.output)
            return
        self.score(item.output)
        for sequence in self.scheduler.update(item.output, item.sampled):
            assert sequence.finish_reason is None
            assert sequence.is_decoding, "all but the last token is computed"
            if sequence.at_max_tokens:
                self.finish(sequence.request_id, FinishReason.LENGTH)

    def score(self, output: SchedulerOutput) -> None:
        """Takes the log-probabilities that come back, as the lane does."""
        for piece in output.slices:
            sequence, rows = self.sequences[piece.request_id], piece.prompt_rows
            if rows is not None and sequence.micro_batch_id == output.micro_batch_id:
                first = piece.start_position + rows.first_row + 1
                self.scored[piece.request_id] += enumerate(rows.next_token_ids, first)
            pooled = piece.pooled_rows
            if pooled is not None and sequence.micro_batch_id == output.micro_batch_id:
                first = piece.start_position + pooled.first_row
                self.pooled[piece.request_id] += range(first, first + pooled.num_rows)

    def check_scored(self, sequence: Sequence, *, is_whole: bool) -> None:
        """Each token of a prompt but the first came once, in order, where it was asked for."""
        wanted = [*enumerate(sequence.request.prompt_token_ids)][1:]
        found = self.scored[sequence.request_id]
        if sequence.request.prompt_logprobs is None:
            assert not found
        elif is_whole:
            assert found == wanted
        else:
            assert found == wanted[: len(found)]
        self.check_pooled(sequence, is_whole=is_whole)

    def check_pooled(self, sequence: Sequence, *, is_whole: bool) -> None:
        """The hidden state of each token that counts came once, in order."""
        num_tokens, embedding = sequence.num_prompt_tokens, sequence.request.embedding
        found = self.pooled[sequence.request_id]
        if embedding is None:
            assert not found
            return
        wanted = [num_tokens - 1] if embedding == LAST else [*range(num_tokens)]
        assert found == wanted if is_whole else found == wanted[: len(found)]

    def finish(self, request_id: str, reason: FinishReason) -> None:
        self.num_finishes[request_id] += self.scheduler.finish(request_id, reason)

    def check_that_only_prefixes_are_held(self) -> None:
        """What the stage holds when nothing runs is what the ledger says, to the block."""
        held = self.config.num_kv_blocks - self.stage.tables.num_free_blocks
        assert held == self.scheduler.num_cached_kv_blocks
        assert held == 0 or self.config.prefix_cache
        for token_ids in self.stage.slots.values():
            assert len(token_ids) % self.config.kv_block_size == 0

    def check(self, output: SchedulerOutput, budget: StepBudget | None) -> None:
        """What must hold of every output."""
        assert output.num_tokens <= self.config.max_num_batched_tokens
        suspects = [one for one in self.sequences.values() if one.is_suspect]
        if any(one.request_id == piece.request_id for one in suspects for piece in output.slices):
            assert len(output.slices) == 1, "a suspect shares its micro-batch"
            beside = [other for other in self.in_flight if other.output.slices]
            assert not beside, "a suspect runs beside others"
        elif budget is not None:
            self.check_budget(output, budget)
        assert all(piece.token_ids for piece in output.slices)
        slots = [piece.kv_slot for piece in output.slices]
        assert len(set(slots)) == len(slots)
        named = {kv_slot for op in output.slot_ops for kv_slot in slots_of(op)}
        assert set(slots) | named <= set(range(self.config.num_slots))
        names = [piece.request_id for piece in output.slices]
        assert len(set(names)) == len(names)
        for other in self.in_flight:
            assert other.output.micro_batch_id < output.micro_batch_id
            assert not set(names) & {piece.request_id for piece in other.output.slices}
        for piece in output.slices:
            sequence = self.sequences[piece.request_id]
            end = piece.start_position + len(piece.token_ids)
            whole = [*sequence.request.prompt_token_ids, *sequence.output_token_ids]
            num_drafts = piece.num_drafts
            assert piece.draft_token_ids == self.drafts(tuple(whole))[:num_drafts]
            own = piece.token_ids[: len(piece.token_ids) - num_drafts]
            end -= num_drafts
            assert list(own) == whole[piece.start_position : end]
            assert piece.num_sampled_rows == (end == len(whole)) + num_drafts
            assert end + num_drafts <= sequence.max_num_tokens
            assert piece.is_decode == sequence.is_decoding
            rows = piece.prompt_rows
            assert rows is None or sequence.request.prompt_logprobs == rows.num_top
            assert rows is None or rows.first_row + len(rows.next_token_ids) <= len(piece.token_ids)
            pooled = piece.pooled_rows
            assert pooled is None or pooled.first_row + pooled.num_rows <= len(piece.token_ids)

    def check_budget(self, output: SchedulerOutput, budget: StepBudget) -> None:
        """A slice of one token may be a decode or prefill."""
        if budget.duration_ns is None:
            assert output.num_drafts == 0
        num_rows = sum(piece.num_sampled_rows for piece in output.slices)
        assert num_rows <= (self.config.max_num_sampled_rows or num_rows)
        sizes = [len(piece.token_ids) - piece.num_drafts for piece in output.slices]
        num_decodes = sum(piece.is_decode for piece in output.slices)
        assert num_decodes <= budget.max_num_decodes + budget.max_num_prefill_tokens
        assert sum(size for size in sizes if size > 1) <= budget.max_num_prefill_tokens
        assert sum(sizes) <= budget.max_num_decodes + budget.max_num_prefill_tokens


def slots_of(op: SlotOp) -> tuple[int, ...]:
    """Every slot that an operation names."""
    return op[:2] if isinstance(op, ForkSlot) else op[:1]


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(
    max_examples=200,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
