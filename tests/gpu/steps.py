"""Every kind of step, one after the other on one engine, and what each does on the card."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from stage_server.compute.torch_engine import TorchEngine
from stage_server.core.batch import SequenceSlice
from stagecoach.contract.logits_request import LogitsRequest
from stagecoach.contract.slot_ops import ForkSlot
from tests.gpu.fake_card import Counts, FakeCard
from tests.gpu.fake_engines import batch_for

SETTINGS: Mapping[str, Any] = {
    "kv_memory_bytes": 1 << 30,
    "max_num_seqs": 128,
    "max_num_batched_tokens": 256,
    "max_model_len": 256,
}
"""Of an engine that runs them, as `StageConfig` has them."""

GREEDY: Mapping[str, Any] = {"num_candidates": 1}
SAMPLED: Mapping[str, Any] = {"num_candidates": 64, "min_mass": 0.99, "num_contenders": 4}
LOGPROBS: Mapping[str, Any] = {
    "num_candidates": 20,
    "token_ids": (5, 6),
    "wants_unit_log_sum_exp": True,
}


class Kind(StrEnum):
    """What a step is made of."""

    FIRST_CHUNK = "first chunk of a prompt"
    LATER_CHUNK = "later chunk of a prompt"
    DECODE_1 = "decode, batch 1"
    DECODE_8 = "decode, batch 8"
    DECODE_96 = "decode, batch 96"
    MIXED = "decode, batch 3, with two chunks"
    FORK = "decode, batch 2, of which one forks the other"
    GREEDY_8 = "decode, batch 8, greedy"
    SAMPLED_8 = "decode, batch 8, sampled"
    LOGPROBS_8 = "decode, batch 8, with log-probabilities"


@dataclass(frozen=True, slots=True)
class Step:
    """One of a kind."""

    kind: Kind
    slices: tuple[SequenceSlice, ...]
    slot_ops: tuple[ForkSlot, ...] = ()
    logits: Mapping[str, Any] | None = None
    """What is wanted of the last row of each slice, as `LogitsRequest` has it."""


def _slices(*pieces: tuple[int, int, int]) -> tuple[SequenceSlice, ...]:
    return tuple(SequenceSlice(*piece) for piece in pieces)


def _decode(first_slot: int, count: int, start: int) -> tuple[SequenceSlice, ...]:
    """Sequences of unequal lengths, from `start` on."""
    return _slices(*((first_slot + i, start + i % 13, 1) for i in range(count)))


STEPS = (
    Step(Kind.FIRST_CHUNK, _slices((0, 0, 40))),
    Step(Kind.LATER_CHUNK, _slices((0, 40, 25))),
    Step(Kind.DECODE_1, _slices((0, 65, 1))),
    Step(Kind.DECODE_8, _decode(10, 8, 20)),
    Step(Kind.MIXED, _slices((10, 21, 1), (11, 22, 1), (12, 23, 1), (0, 66, 9), (1, 0, 7))),
    Step(Kind.FORK, _slices((0, 75, 1), (2, 20, 1)), (ForkSlot(0, 2, 20),)),
    Step(Kind.GREEDY_8, _decode(20, 8, 20), logits=GREEDY),
    Step(Kind.SAMPLED_8, _decode(30, 8, 20), logits=SAMPLED),
    Step(Kind.LOGPROBS_8, _decode(40, 8, 20), logits=LOGPROBS),
)
"""All but the largest."""

LARGE_STEPS = (*STEPS, Step(Kind.DECODE_96, _decode(10, 96, 36)))


def count_steps(
    card: FakeCard, engine: TorchEngine, steps: Iterable[Step] = STEPS
) -> dict[Kind, Counts]:
    """Runs steps in their order; those with logits need a last stage.

    Tokens that a slice goes on from are entered into the books alone: the card computes nothing.
    """
    counts = {}
    held: dict[int, int] = {}  # tokens of each slot
    engine.warm_up()
    for step in steps:
        if step.logits is not None and not engine.info.is_last:
            continue
        held |= {op.target_kv_slot: op.num_tokens for op in step.slot_ops}
        missing = [
            SequenceSlice(piece.kv_slot, start, piece.start_position - start)
            for piece in step.slices
            if piece.start_position > (start := held.get(piece.kv_slot, 0))
        ]
        engine._slots.apply((), missing)
        held |= {piece.kv_slot: piece.end_position for piece in step.slices}
        rows, row = [], -1
        for piece in step.slices:
            row += piece.num_tokens
            rows.append(row)
        logits = [LogitsRequest(row=row, **(step.logits or GREEDY)) for row in rows]
        batch = batch_for(engine, step.slices, slot_ops=step.slot_ops, logits=logits)
        with card.record() as counted:
            engine.forward(batch)
        counts[step.kind] = counted
    engine.free_all_slots()
    return counts
