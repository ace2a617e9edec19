"""Frames that a broken or hostile peer might send, made from a valid one and a seed."""

import random
from collections.abc import Callable

from stagecoach.v1 import stage_pb2
from tests.faults.stage_wire import MAX_NUM_BATCHED_TOKENS, MAX_NUM_SEQS, micro_batch

Mutation = Callable[[stage_pb2.MicroBatch, random.Random], None]

_EXTREMES = (0, 1, 2**7, 2**15, 2**31 - 1, 2**31, 2**32 - 1)


def malformed_frame(seed: int) -> bytes:
    """One frame; the same for the same seed. A few are valid by chance."""
    chance = random.Random(seed)
    request = micro_batch((chance.randrange(MAX_NUM_SEQS), 0, chance.randrange(1, 6)))
    kind = chance.random()
    if kind < 0.1:
        return chance.randbytes(chance.randrange(200))
    if kind < 0.7:
        mutate(request.micro_batch, chance)
    data = bytearray(request.SerializeToString())
    if kind >= 0.7:
        for _ in range(chance.randrange(1, 8)):
            data[chance.randrange(min(len(data), 120))] = chance.randrange(256)
    if kind >= 0.9:
        del data[chance.randrange(len(data)) :]
    return bytes(data)


def mutate(batch: stage_pb2.MicroBatch, chance: random.Random) -> None:
    """Makes one or two fields of a micro-batch say something else."""
    for _ in range(chance.randrange(1, 3)):
        chance.choice(_MUTATIONS)(batch, chance)


def _extreme(chance: random.Random) -> int:
    return chance.choice(_EXTREMES)


def _payload_of_another_length(batch: stage_pb2.MicroBatch, chance: random.Random) -> None:
    data = batch.hidden_states.data
    batch.hidden_states.data = data[: chance.randrange(len(data) + 1)] + bytes(
        chance.randrange(1, 9)
    )


def _shape(batch: stage_pb2.MicroBatch, chance: random.Random) -> None:
    shape = [_extreme(chance) for _ in range(chance.randrange(6))]
    batch.hidden_states.ClearField("shape")
    batch.hidden_states.shape.extend(shape)


def _dtype(batch: stage_pb2.MicroBatch, chance: random.Random) -> None:
    batch.hidden_states.dtype = chance.randrange(-2, 12)  # type: ignore[assignment]


def _slice(batch: stage_pb2.MicroBatch, chance: random.Random) -> None:
    if batch.slices:
        field = chance.choice(("kv_slot", "start_position", "num_tokens"))
        setattr(batch.slices[0], field, _extreme(chance))


def _more_slices(batch: stage_pb2.MicroBatch, chance: random.Random) -> None:
    for _ in range(chance.choice((1, MAX_NUM_SEQS, MAX_NUM_BATCHED_TOKENS + 1))):
        batch.slices.add(kv_slot=chance.randrange(MAX_NUM_SEQS + 1), num_tokens=1)


def _no_slices(batch: stage_pb2.MicroBatch, _: random.Random) -> None:
    batch.ClearField("slices")


def _token_ids(batch: stage_pb2.MicroBatch, chance: random.Random) -> None:
    batch.token_ids.ids.extend(_extreme(chance) for _ in range(chance.randrange(5)))


def _slot_op(batch: stage_pb2.MicroBatch, chance: random.Random) -> None:
    op = batch.slot_ops.add()
    match chance.randrange(4):
        case 0:
            op.free.kv_slot = _extreme(chance)
        case 1:
            op.truncate.kv_slot, op.truncate.num_tokens = _extreme(chance), _extreme(chance)
        case 2:
            op.fork.source_kv_slot, op.fork.target_kv_slot = _extreme(chance), _extreme(chance)
            op.fork.num_tokens = _extreme(chance)


def _logits(batch: stage_pb2.MicroBatch, chance: random.Random) -> None:
    batch.logits.add(
        row=_extreme(chance),
        num_candidates=_extreme(chance),
        min_mass=chance.choice((float("nan"), float("inf"), -1.0, 0.0, 2.0)),
        temperature=chance.choice((float("nan"), float("inf"), -1.0, 0.0, 1.0)),
        token_ids=[_extreme(chance)],
    )


_MUTATIONS: tuple[Mutation, ...] = (
    _payload_of_another_length,
    _shape,
    _dtype,
    _slice,
    _more_slices,
    _no_slices,
    _token_ids,
    _slot_op,
    _logits,
)
