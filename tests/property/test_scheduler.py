"""The scheduler against a slow, obvious stage, under any order of events.

The stage is a dict from slot to number of tokens. It takes outputs in the order of `schedule`;
their results come back in any order, or the output fails, or everything is lost at once.
"""

from dataclasses import dataclass

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from coordinator.core.request import FinishReason, Request
from coordinator.core.sequence import Sequence, SequenceState
from coordinator.core.step import SchedulerOutput
from coordinator.scheduler import Scheduler, SchedulerConfig, StepBudget

MAX_NUM_IN_FLIGHT = 4

BUDGETS = st.builds(
    StepBudget, max_num_decodes=st.integers(1, 4), max_num_prefill_tokens=st.integers(1, 12)
)


def next_token(token_ids: tuple[int, ...]) -> int:
    """A model of which every token depends on all before it."""
    return (sum((index + 1) * token for index, token in enumerate(token_ids)) * 31 + 7) % 1000


def generate(request: Request) -> list[int]:
    """What the request's output must be, uninterrupted."""
    token_ids = request.prompt_token_ids
    for _ in range(request.max_tokens):
        token_ids += (next_token(token_ids),)
    return list(token_ids[len(request.prompt_token_ids) :])


class Stage:
    """Slot to tokens, as every stage holds them."""

    def __init__(self, config: SchedulerConfig) -> None:
        self.config = config
        self.slots: dict[int, tuple[int, ...]] = {}

    @property
    def num_blocks(self) -> int:
        size = self.config.kv_block_size
        return sum(-(-len(token_ids) // size) for token_ids in self.slots.values())

    def forward(self, output: SchedulerOutput, *, exactly: bool) -> dict[str, int] | None:
        """Frees, then runs.

        Args:
            output: What runs next.
            exactly: Whether every slice must start where its slot ends and all blocks must fit.
                Not so behind an output that failed, the frees of which may be missing.

        Returns:
            A token for each slice that samples; None for a gap or too few blocks.
        """
        for kv_slot in output.freed_kv_slots:
            self.slots.pop(kv_slot, None)
        sampled = {}
        has_gap = False
        for piece in output.slices:
            held = self.slots.get(piece.kv_slot, ())
            assert piece.start_position == len(held) or not exactly
            has_gap = has_gap or piece.start_position > len(held)
            token_ids = held[: piece.start_position] + piece.token_ids
            self.slots[piece.kv_slot] = token_ids
            if piece.samples:
                sampled[piece.request_id] = next_token(token_ids)
        is_over_full = self.num_blocks > self.config.num_kv_blocks
        assert not (exactly and is_over_full)
        return None if has_gap or is_over_full else sampled


@dataclass(frozen=True, slots=True, kw_only=True)
class InFlight:
    """An output on its way, and what the stage made of it; None: it will fail."""

    output: SchedulerOutput
    sampled: dict[str, int] | None


class SchedulerMachine(RuleBasedStateMachine):
    """Any order of add, schedule, results, failures, aborts, and the loss of a stage."""

    @initialize(
        max_num_batched_tokens=st.integers(1, 24),
        max_num_seqs=st.integers(1, 6),
        kv_block_size=st.integers(1, 4),
        num_kv_blocks=st.integers(4, 14),
        max_num_waiting=st.integers(1, 12),
    )
    def start(
        self,
        max_num_batched_tokens: int,
        max_num_seqs: int,
        kv_block_size: int,
        num_kv_blocks: int,
        max_num_waiting: int,
    ) -> None:
        self.config = SchedulerConfig(
            max_num_batched_tokens=max_num_batched_tokens,
            max_num_seqs=max_num_seqs,
            max_model_len=40,
            kv_block_size=kv_block_size,
            num_kv_blocks=num_kv_blocks,
            max_num_waiting=max_num_waiting,
        )
        self.scheduler = Scheduler(self.config)
        self.stage = Stage(self.config)
        self.sequences: dict[str, Sequence] = {}
        self.num_finishes: dict[str, int] = {}
        self.in_flight: list[InFlight] = []

    @precondition(lambda self: self.scheduler.num_waiting < self.config.max_num_waiting)
    @rule(data=st.data())
    def add(self, data: st.DataObject) -> None:
        limit = min(self.config.max_model_len, self.config.num_kv_tokens)
        num_prompt = data.draw(st.integers(1, 2) | st.integers(1, limit - 1), label="num_prompt")
        request = Request(
            request_id=f"r{len(self.sequences)}",
            prompt_token_ids=tuple(range(num_prompt)),
            max_tokens=data.draw(st.integers(1, min(10, limit - num_prompt)), label="max_tokens"),
        )
        self.sequences[request.request_id] = self.scheduler.add(request)
        self.num_finishes[request.request_id] = 0

    @precondition(lambda self: len(self.in_flight) < MAX_NUM_IN_FLIGHT)
    @rule(
        budget=st.none() | BUDGETS,
        fate=st.sampled_from(["runs"] * 6 + ["fails before", "fails after"]),
    )
    def schedule(self, budget: StepBudget | None, fate: str) -> None:
        output = self.scheduler.schedule(budget)
        if output is None:
            assert self.in_flight or not self.scheduler.has_work, "stuck"
            return
        self.check(output, budget)
        sampled = self.forward(output) if fate != "fails before" else None
        if fate == "fails after":
            sampled = None
        self.in_flight.append(InFlight(output=output, sampled=sampled))

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data(), stage_is_lost=st.sampled_from([False] * 9 + [True]))
    def complete(self, data: st.DataObject, stage_is_lost: bool) -> None:
        if stage_is_lost:
            self.give_up_everything()
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
        assert self.stage.slots == {}
        assert self.scheduler.num_free_kv_blocks == self.config.num_kv_blocks
        for request_id, sequence in self.sequences.items():
            assert sequence.state is SequenceState.FINISHED
            assert self.num_finishes[request_id] == 1
            whole = generate(sequence.request)
            assert sequence.output_token_ids == whole[: len(sequence.output_token_ids)]
            if sequence.finish_reason is FinishReason.LENGTH:
                assert sequence.output_token_ids == whole

    def give_up_everything(self) -> None:
        running = self.scheduler.num_running
        assert len(self.scheduler.preempt_all()) <= running
        assert self.scheduler.num_running == 0
        assert self.scheduler.num_free_kv_blocks == self.config.num_kv_blocks
        for late in self.in_flight:
            assert self.scheduler.update(late.output, late.sampled or {}) == []
        self.in_flight.clear()

    def forward(self, output: SchedulerOutput) -> dict[str, int] | None:
        behind_failure = any(other.sampled is None for other in self.in_flight)
        return self.stage.forward(output, exactly=not behind_failure)

    def land(self, item: InFlight) -> None:
        if item.sampled is None:
            self.scheduler.requeue(item.output)
            return
        for sequence in self.scheduler.update(item.output, item.sampled):
            assert sequence.finish_reason is None
            if sequence.at_max_tokens:
                self.finish(sequence.request_id, FinishReason.LENGTH)

    def finish(self, request_id: str, reason: FinishReason) -> None:
        self.num_finishes[request_id] += self.scheduler.finish(request_id, reason)

    def check(self, output: SchedulerOutput, budget: StepBudget | None) -> None:
        """What must hold of every output."""
        assert output.num_tokens <= self.config.max_num_batched_tokens
        if budget is not None:
            self.check_budget(output, budget)
        assert all(piece.token_ids for piece in output.slices)
        slots = [piece.kv_slot for piece in output.slices]
        assert len(set(slots)) == len(slots)
        assert set(slots) | set(output.freed_kv_slots) <= set(range(self.config.max_num_seqs))
        names = [piece.request_id for piece in output.slices]
        assert len(set(names)) == len(names)
        for other in self.in_flight:
            assert other.output.micro_batch_id < output.micro_batch_id
            assert not set(names) & {piece.request_id for piece in other.output.slices}
        for piece in output.slices:
            sequence = self.sequences[piece.request_id]
            end = piece.start_position + len(piece.token_ids)
            whole = [*sequence.request.prompt_token_ids, *sequence.output_token_ids]
            assert list(piece.token_ids) == whole[piece.start_position : end]
            assert piece.samples == (end == len(whole))

    def check_budget(self, output: SchedulerOutput, budget: StepBudget) -> None:
        """One token of a sequence is a decode, unless it is its first or not its last."""
        sizes = [len(piece.token_ids) for piece in output.slices]
        num_decodes = sum(size == 1 for size in sizes)
        assert num_decodes <= budget.max_num_decodes + budget.max_num_prefill_tokens
        assert sum(size for size in sizes if size > 1) <= budget.max_num_prefill_tokens
        assert sum(sizes) <= budget.max_num_decodes + budget.max_num_prefill_tokens


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(
    max_examples=200,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
