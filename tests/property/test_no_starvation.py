"""Whoever waits is served in the end, whatever else keeps coming: the scheduler, step by step."""

from collections import deque
from itertools import count, cycle

from hypothesis import example, given, settings
from hypothesis import strategies as st

from coordinator.core.request import FinishReason, Request
from coordinator.core.sequence import Sequence
from coordinator.core.step import SchedulerOutput
from coordinator.scheduler import Scheduler, SchedulerConfig, StepBudget
from tests.schedulers import adopt

NUM_KV_TOKENS = 96
MAX_STEPS = 4000
"""Each of 64 that pass may run for a dozen steps, two at a time, before each of four that wait."""


MAX_NUM_WAITING = 64

ARRIVALS = st.tuples(
    st.integers(1, 12) | st.integers(1, NUM_KV_TOKENS - 8),  # tokens of the prompt
    st.integers(1, 8),  # tokens to generate
    st.sampled_from([None, 0, 1]),  # a prefix that others have too
    st.sampled_from([None, None, None, 1, 3]),  # steps after which it is aborted
)
"""What keeps coming."""


@settings(max_examples=60, deadline=None)
@given(
    patient=st.lists(
        st.tuples(st.integers(1, NUM_KV_TOKENS - 8), st.integers(1, 8)), min_size=1, max_size=4
    ),
    arrivals=st.lists(ARRIVALS, min_size=1, max_size=6),
    num_arrivals=st.integers(1, 3),
    max_num_batched_tokens=st.integers(2, 24),
    max_num_seqs=st.integers(1, 6),
    depth=st.integers(1, 3),
    max_num_prefill_tokens=st.none() | st.integers(1, 8),
    prefix_cache=st.booleans(),
)
@example(  # memory that is never empty
    patient=[(88, 8)],
    arrivals=[(12, 8, None, None)],
    num_arrivals=3,
    max_num_batched_tokens=24,
    max_num_seqs=6,
    depth=2,
    max_num_prefill_tokens=None,
    prefix_cache=False,
)
@example(  # room for prompts that is never left over
    patient=[(88, 8)],
    arrivals=[(4, 1, None, None)],
    num_arrivals=3,
    max_num_batched_tokens=24,
    max_num_seqs=6,
    depth=1,
    max_num_prefill_tokens=4,
    prefix_cache=False,
)
@example(  # a prefix that others begin and never end
    patient=[(40, 8)],
    arrivals=[(80, 1, 1, 1), (80, 1, 1, 3)],
    num_arrivals=1,
    max_num_batched_tokens=24,
    max_num_seqs=6,
    depth=1,
    max_num_prefill_tokens=4,
    prefix_cache=True,
)
def test_everyone_ends_while_others_keep_coming(
    patient: list[tuple[int, int]],
    arrivals: list[tuple[int, int, int | None, int | None]],
    num_arrivals: int,
    max_num_batched_tokens: int,
    max_num_seqs: int,
    depth: int,
    max_num_prefill_tokens: int | None,
    prefix_cache: bool,
) -> None:
    scheduler = Scheduler(
        SchedulerConfig(
            max_num_batched_tokens=max_num_batched_tokens,
            max_num_seqs=max_num_seqs,
            max_model_len=NUM_KV_TOKENS,
            kv_block_size=2,
            num_kv_blocks=NUM_KV_TOKENS // 2,
            prefix_cache=prefix_cache,
            min_awaited_tokens=4,
        )
    )
    budget = None
    if max_num_prefill_tokens is not None:
        budget = StepBudget(
            max_num_decodes=max_num_seqs, max_num_prefill_tokens=max_num_prefill_tokens
        )
    names = count()

    def add(num_prompt: int, max_tokens: int, prefix: int | None) -> Sequence:
        name = next(names)
        first = 1000 * name if prefix is None else 10 * prefix
        token_ids = range(first, first + num_prompt)
        return adopt(
            scheduler,
            Request(
                request_id=f"{name}",
                prompt_token_ids=(*token_ids[:-1], 5000 + name),
                max_tokens=max_tokens,
            ),
        )

    add(NUM_KV_TOKENS // 2, 8, None)  # runs before the others wait
    in_flight: deque[SchedulerOutput] = deque()
    watched: list[Sequence] = []
    shapes = cycle(arrivals)
    deadlines: dict[int, list[str]] = {}
    for step in range(MAX_STEPS):
        if step == 1:
            watched = [
                add(num_prompt, max_tokens, index % 2 or None)
                for index, (num_prompt, max_tokens) in enumerate(patient, 1)
            ]
        for _ in range(num_arrivals):
            num_prompt, max_tokens, prefix, lifetime = next(shapes)
            if scheduler.num_waiting < MAX_NUM_WAITING - len(patient):
                sequence = add(num_prompt, max_tokens, prefix)
                if lifetime is not None:
                    deadlines.setdefault(step + lifetime, []).append(sequence.request_id)
        for request_id in deadlines.pop(step, ()):
            scheduler.finish(request_id, FinishReason.ABORT)
        output = scheduler.schedule(budget)
        if output is not None:
            in_flight.append(output)
        assert in_flight, "stuck"
        if len(in_flight) == depth or output is None:
            land(scheduler, in_flight.popleft())
        if step > 0 and all(sequence.finish_reason for sequence in watched):
            return
    raise AssertionError(f"after {MAX_STEPS} steps some still wait: {watched}")


def land(scheduler: Scheduler, output: SchedulerOutput) -> None:
    sampled = {piece.request_id: (7,) for piece in output.slices if piece.num_sampled_rows}
    for sequence in scheduler.update(output, sampled):
        if sequence.at_max_tokens:
            scheduler.finish(sequence.request_id, FinishReason.LENGTH)
