"""Schedulers and requests for tests, and steps that check the books each time."""

from coordinator.core.request import FinishReason, Request
from coordinator.core.sequence import Sequence
from coordinator.core.step import SchedulerOutput
from coordinator.scheduler import Scheduler, SchedulerConfig, StepBudget
from coordinator.scheduler.policy import Policy
from stagecoach.contract.slot_ops import FreeSlot

TOKEN = 7
"""What every row samples."""


class ShortestFirst:
    """Another policy: the fewer tokens a prompt has, the sooner."""

    def rank(self, sequence: Sequence) -> tuple[int, ...]:
        return (sequence.num_prompt_tokens,)


def create_scheduler(
    *,
    policy: Policy | None = None,
    max_num_batched_tokens: int = 64,
    max_num_seqs: int = 8,
    max_model_len: int = 128,
    kv_block_size: int = 4,
    num_kv_blocks: int = 64,
) -> Scheduler:
    return Scheduler(
        SchedulerConfig(
            max_num_batched_tokens=max_num_batched_tokens,
            max_num_seqs=max_num_seqs,
            max_model_len=max_model_len,
            kv_block_size=kv_block_size,
            num_kv_blocks=num_kv_blocks,
        ),
        policy=policy,
    )


def create_request(request_id: str = "a", *, num_prompt: int = 4, max_tokens: int = 8) -> Request:
    return Request(
        request_id=request_id,
        prompt_token_ids=tuple(range(100, 100 + num_prompt)),
        max_tokens=max_tokens,
    )


def add(
    scheduler: Scheduler, *request_ids: str, num_prompt: int = 4, max_tokens: int = 8
) -> list[Sequence]:
    return [
        adopt(scheduler, create_request(request_id, num_prompt=num_prompt, max_tokens=max_tokens))
        for request_id in request_ids
    ]


def adopt(scheduler: Scheduler, request: Request) -> Sequence:
    """Puts a request in the waiting queue, as the dispatcher does."""
    scheduler.config.check_length(request)
    sequence = Sequence(request=request)
    scheduler.adopt(sequence)
    return sequence


def create_budget(*, max_num_decodes: int = 64, max_num_prefill_tokens: int = 64) -> StepBudget:
    return StepBudget(
        max_num_decodes=max_num_decodes, max_num_prefill_tokens=max_num_prefill_tokens
    )


def schedule(scheduler: Scheduler, budget: StepBudget | None = None) -> SchedulerOutput:
    output = scheduler.schedule(budget)
    scheduler.check_integrity()
    assert output is not None
    return output


def update(scheduler: Scheduler, output: SchedulerOutput) -> list[str]:
    sampled = {piece.request_id: (TOKEN,) for piece in output.slices if piece.num_sampled_rows}
    advanced = scheduler.update(output, sampled)
    scheduler.check_integrity()
    return [sequence.request_id for sequence in advanced]


def step(scheduler: Scheduler) -> SchedulerOutput:
    output = schedule(scheduler)
    update(scheduler, output)
    return output


def scheduled(output: SchedulerOutput) -> dict[str, tuple[int, int]]:
    """By request id, start position and number of tokens."""
    return {
        piece.request_id: (piece.start_position, len(piece.token_ids)) for piece in output.slices
    }


def freed(output: SchedulerOutput) -> tuple[int, ...]:
    """Slots that an output frees; it does nothing else to slots."""
    assert all(isinstance(op, FreeSlot) for op in output.slot_ops)
    return tuple(op.kv_slot for op in output.slot_ops if isinstance(op, FreeSlot))


def run_to_the_end(scheduler: Scheduler) -> tuple[dict[str, list[int]], int]:
    """Returns outputs by request id, and the highest number of KV blocks in use."""
    outputs: dict[str, list[int]] = {}
    peak = 0
    while scheduler.has_work:
        output = schedule(scheduler)
        peak = max(peak, scheduler.config.num_kv_blocks - scheduler.num_free_kv_blocks)
        sampled = {piece.request_id: (TOKEN,) for piece in output.slices if piece.num_sampled_rows}
        for sequence in scheduler.update(output, sampled):
            if sequence.at_max_tokens:
                assert scheduler.finish(sequence.request_id, FinishReason.LENGTH)
                outputs[sequence.request_id] = sequence.output_token_ids
        scheduler.check_integrity()
    return outputs, peak


def lose(scheduler: Scheduler, *outputs: SchedulerOutput) -> None:
    scheduler.preempt_all({output.micro_batch_id for output in outputs})
    scheduler.check_integrity()
