"""Runs every batch size against a coordinator."""

from collections.abc import Callable

from coordinator.bench.decode import DecodedRequest, decode_together
from coordinator.bench.limit import DecodeLimit
from coordinator.bench.prompts import fixed_prompts
from coordinator.bench.result import BenchPlan, BenchResult, BenchRow, Run
from stagecoach.client import AsyncClient, ModelStatus
from stagecoach.contract.errors import (
    ContextLengthExceededError,
    InsufficientMemoryError,
    QueueFullError,
    StagecoachError,
    UnavailableError,
)

STATUS_TIMEOUT_S = 10.0


async def sweep(
    connect: Callable[[], AsyncClient], plan: BenchPlan, report: Callable[[str], None]
) -> BenchResult:
    """Measures every batch size: one run that warms up, then the repeats.

    Args:
        connect: Makes a client of the coordinator.
        plan: What is measured.
        report: Told in a line what may disturb the figures, and each figure as it comes.

    Raises:
        ContextLengthExceededError: The requests are longer than the cluster allows.
        InsufficientMemoryError: A batch is larger than the KV memory.
        QueueFullError: A batch is larger than the number of requests that run at once.
        StagecoachError: The coordinator is not ready, or a request failed.
    """
    async with connect() as client:
        status = await _model_status(client, plan)
        check_fits(status, plan)
        if status.num_running + status.num_waiting:
            report("other requests are being served: they share what is measured")
        limit, no_limit_reason = _limit(status)
        prompts = _Prompts(status, plan)
        rows = []
        for batch in plan.batches:
            await _run(client, prompts, batch)  # warms up
            runs = [
                Run.of(await _run(client, prompts, batch), plan.prompt_tokens)
                for _ in range(plan.repeats)
            ]
            row = BenchRow.of(batch, runs, _tokens_per_s(limit, plan, batch))
            report(f"batch {batch}: {row.tokens_per_s:.1f} tokens/s")
            rows.append(row)
    return BenchResult(plan=plan, status=status, no_limit_reason=no_limit_reason, rows=tuple(rows))


async def run_once(connect: Callable[[], AsyncClient], plan: BenchPlan) -> int:
    """Runs every batch size once, for a trace.

    Returns:
        Sum, over the requests, of the steps that each took part in.

    Raises:
        StagecoachError: A request failed.
    """
    async with connect() as client:
        prompts = _Prompts(await _model_status(client, plan), plan)
        requests = [
            request for batch in plan.batches for request in await _run(client, prompts, batch)
        ]
    return sum(request.timings.num_steps for request in requests)


async def _model_status(client: AsyncClient, plan: BenchPlan) -> ModelStatus:
    """The state of the model that is measured."""
    return (await client.status(timeout_s=STATUS_TIMEOUT_S)).of_model(plan.model)


def check_fits(status: ModelStatus, plan: BenchPlan) -> None:
    """Refuses what the cluster cannot run at once: what waits cannot be measured.

    Raises:
        UnavailableError: The coordinator is not ready.
        ContextLengthExceededError: The requests are longer than the cluster allows.
        InsufficientMemoryError: A batch is larger than the KV memory.
        QueueFullError: A batch is larger than the number of requests that run at once.
    """
    if not status.ready:
        raise UnavailableError("the cluster is not ready; see `coordinator-cli status`")
    lengths = f"{plan.prompt_tokens} + {plan.output_tokens} tokens"
    num_tokens = plan.prompt_tokens + plan.output_tokens
    if num_tokens > status.max_model_len:
        raise ContextLengthExceededError(
            f"requests of {lengths} are longer than the {status.max_model_len} that the cluster "
            "allows",
            limit=status.max_model_len,
        )
    largest = max(plan.batches)
    if largest > status.max_num_seqs:
        raise QueueFullError(
            f"batch {largest} is more than the {status.max_num_seqs} requests that run at once "
            "(--max-num-seqs of stages and coordinator)",
            max_num_seqs=status.max_num_seqs,
        )
    block_size = status.stages[0].kv_block_size
    num_blocks = largest * -(-(num_tokens - 1) // block_size)  # the last token needs no KV
    if num_blocks > status.num_kv_blocks:
        raise InsufficientMemoryError(
            f"batch {largest} of {lengths} needs {num_blocks} KV blocks of {block_size} tokens, the"
            f" smallest stage has {status.num_kv_blocks} (--kv-memory)",
            needed_kv_blocks=num_blocks,
            num_kv_blocks=status.num_kv_blocks,
        )


def _limit(status: ModelStatus) -> tuple[DecodeLimit | None, str | None]:
    """The limit of an emulated cluster, or why it is not known; neither for a real one."""
    if not status.emulated:
        return None, None
    try:
        return DecodeLimit(status), None
    except StagecoachError as error:
        return None, error.message


def _tokens_per_s(limit: DecodeLimit | None, plan: BenchPlan, batch: int) -> float | None:
    if limit is None:
        return None
    return limit.tokens_per_s(
        batch, prompt_tokens=plan.prompt_tokens, output_tokens=plan.output_tokens
    )


class _Prompts:
    """The prompts of one run after the other; none occurs twice unless that is asked for.

    A fresh coordinator always gets the same ones. One that has finished requests, which may have
    been a bench, gets others: its prefix cache knows none of them.
    """

    def __init__(self, status: ModelStatus, plan: BenchPlan) -> None:
        self.plan = plan
        self._vocab_size = status.stages[0].vocab_size
        self._seed = status.num_finished

    def next(self, batch: int) -> list[list[int]]:
        if self.plan.same_prompt:
            return batch * fixed_prompts(1, self.plan.prompt_tokens, vocab_size=self._vocab_size)
        self._seed += 1
        return fixed_prompts(
            batch, self.plan.prompt_tokens, vocab_size=self._vocab_size, seed=self._seed
        )


async def _run(client: AsyncClient, prompts: _Prompts, batch: int) -> list[DecodedRequest]:
    plan = prompts.plan
    return await decode_together(
        client,
        prompts.next(batch),
        plan.output_tokens,
        timeout_s=plan.timeout_s,
        model=plan.model,
    )
