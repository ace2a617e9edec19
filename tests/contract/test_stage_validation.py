"""Every field of a micro-batch is checked; a bad one is refused in-band and changes nothing."""

import math
from collections.abc import AsyncIterator

import grpc
import numpy as np
import pytest

from stagecoach.contract.errors import InvalidArgumentError, StaleStateError
from stagecoach.contract.layer_range import LayerRange
from stagecoach.v1 import stage_pb2, tensor_pb2
from tests.contract.arithmetic_engine import (
    HIDDEN_SIZE,
    VOCAB_SIZE,
    ArithmeticEngine,
    arithmetic_info,
)
from tests.contract.stage_builders import (
    ForwardCall,
    OpenedStream,
    micro_batch,
    opening,
    running_stage,
)
from tests.ended_peers import may_have_ended
from tests.tensor_messages import from_numpy

MIDDLE = LayerRange(2, 4)
LAST = LayerRange(4, 6)


@pytest.fixture
async def first() -> AsyncIterator[OpenedStream]:
    async with running_stage() as stage:
        yield await stage.open()


async def open_stage_of(layers: LayerRange) -> AsyncIterator[OpenedStream]:
    async with running_stage(info=arithmetic_info(layers)) as stage:
        yield await stage.open(layers=stage_pb2.LayerRange(start=layers.start, end=layers.end))


@pytest.fixture
async def middle() -> AsyncIterator[OpenedStream]:
    async for stream in open_stage_of(MIDDLE):
        yield stream


@pytest.fixture
async def last() -> AsyncIterator[OpenedStream]:
    async for stream in open_stage_of(LAST):
        yield stream


def hidden_batch(
    tensor: tensor_pb2.Tensor, *logits: stage_pb2.LogitsRequest, num_tokens: int = 2
) -> stage_pb2.MicroBatch:
    batch = micro_batch((0, 0, num_tokens))
    batch.hidden_states.CopyFrom(tensor)
    batch.logits.extend(logits)
    return batch


def hidden_states(
    rows: int = 2, width: int = HIDDEN_SIZE, dtype: str = "float32"
) -> tensor_pb2.Tensor:
    return from_numpy(np.ones((rows, width), dtype=dtype))


def slot_op(**op: object) -> stage_pb2.MicroBatch:
    return stage_pb2.MicroBatch(slot_ops=[stage_pb2.SlotOp(**op)])  # type: ignore[arg-type]


BAD_FOR_FIRST = {
    "slot beyond max_num_seqs": (micro_batch((8, 0, 1)), "slices[0].kv_slot", "8"),
    "slot twice": (micro_batch((1, 0, 1), (1, 1, 1)), "slices[1].kv_slot", "twice"),
    "empty slice": (micro_batch((0, 0, 1), (1, 0, 0)), "slices[1].num_tokens", "0"),
    "beyond max_model_len": (micro_batch((0, 30, 3)), "slices[0]", "33"),
    "positions that would overflow": (micro_batch((0, 2**32 - 1, 1)), "slices[0]", "4294967296"),
    "too many tokens": (micro_batch((0, 0, 9), (1, 0, 8)), "slices", "17"),
    "too few ids": (micro_batch((0, 0, 2), token_ids=[1]), "token_ids", "1 ids"),
    "too many ids": (micro_batch((0, 0, 2), token_ids=[1, 2, 3]), "token_ids", "3 ids"),
    "id beyond the vocabulary": (
        micro_batch((0, 0, 2), token_ids=[1, VOCAB_SIZE]),
        "token_ids",
        str(VOCAB_SIZE),
    ),
    "huge id": (micro_batch((0, 0, 1), token_ids=[2**32 - 1]), "token_ids", "4294967295"),
    "no inputs": (
        stage_pb2.MicroBatch(slices=[stage_pb2.SequenceSlice(num_tokens=1)]),
        "inputs",
        "token_ids",
    ),
    "hidden states for the first stage": (hidden_batch(hidden_states()), "inputs", "token_ids"),
    "inputs without slices": (
        stage_pb2.MicroBatch(token_ids=stage_pb2.TokenIds(ids=[1])),
        "inputs",
        "unset",
    ),
    "rows of a prompt for a stage that is not the last": (
        stage_pb2.MicroBatch(
            slices=[stage_pb2.SequenceSlice(num_tokens=1)],
            token_ids=stage_pb2.TokenIds(ids=[1]),
            prompt_logits=[stage_pb2.PromptLogitsRequest(token_ids=[1])],
        ),
        "prompt_logits",
        "0:2 of 6",
    ),
    "sums of a stage that is not the last": (
        stage_pb2.MicroBatch(
            slices=[stage_pb2.SequenceSlice(num_tokens=1)],
            token_ids=stage_pb2.TokenIds(ids=[1]),
            hidden_sums=[stage_pb2.HiddenSumRequest(num_rows=1)],
        ),
        "hidden_sums",
        "0:2 of 6",
    ),
    "logits of a stage that is not the last": (
        stage_pb2.MicroBatch(
            slices=[stage_pb2.SequenceSlice(num_tokens=1)],
            token_ids=stage_pb2.TokenIds(ids=[1]),
            logits=[stage_pb2.LogitsRequest(num_candidates=1)],
        ),
        "logits",
        "0:2 of 6",
    ),
    "free of a slot beyond max_num_seqs": (
        slot_op(free=stage_pb2.FreeSlot(kv_slot=8)),
        "slot_ops[0].free.kv_slot",
        "8",
    ),
    "truncate of a slot beyond max_num_seqs": (
        slot_op(truncate=stage_pb2.TruncateSlot(kv_slot=9)),
        "slot_ops[0].truncate.kv_slot",
        "9",
    ),
    "fork from a slot beyond max_num_seqs": (
        slot_op(fork=stage_pb2.ForkSlot(source_kv_slot=8, num_tokens=1)),
        "slot_ops[0].fork.source_kv_slot",
        "8",
    ),
    "fork to a slot beyond max_num_seqs": (
        slot_op(fork=stage_pb2.ForkSlot(target_kv_slot=8, num_tokens=1)),
        "slot_ops[0].fork.target_kv_slot",
        "8",
    ),
    "fork to itself": (
        slot_op(fork=stage_pb2.ForkSlot(source_kv_slot=1, target_kv_slot=1, num_tokens=1)),
        "slot_ops[0].fork",
        "itself",
    ),
    "fork of nothing": (
        slot_op(fork=stage_pb2.ForkSlot(target_kv_slot=1)),
        "slot_ops[0].fork.num_tokens",
        "0",
    ),
    "no operation": (slot_op(), "slot_ops[0]", "no operation"),
}


@pytest.mark.parametrize("case", BAD_FOR_FIRST)
async def test_a_bad_micro_batch_is_refused_by_field_and_the_stream_goes_on(
    case: str, first: OpenedStream
) -> None:
    batch, field, number = BAD_FOR_FIRST[case]
    before = await first.hidden(micro_batch((0, 0, 2)))

    error = await first.failure(batch)

    assert isinstance(error, InvalidArgumentError)
    assert error.field == field
    assert number in error.message
    assert field in error.message
    assert (
        await first.hidden(micro_batch((0, 2, 1), token_ids=[2]))
        == (await first.hidden(micro_batch((1, 0, 3))))[2:]
    )
    assert await first.hidden(micro_batch((0, 0, 2))) == before


BAD_HIDDEN_STATES = {
    "token ids": (micro_batch((0, 0, 2)), "inputs", "hidden_states"),
    "too few rows": (hidden_batch(hidden_states(rows=1)), "hidden_states", "[1, 4]"),
    "too many rows": (hidden_batch(hidden_states(rows=3)), "hidden_states", "[3, 4]"),
    "wrong width": (hidden_batch(hidden_states(width=5)), "hidden_states", "[2, 5]"),
    "wrong dtype": (hidden_batch(hidden_states(dtype="float16")), "hidden_states", "float16"),
    "unknown dtype": (
        hidden_batch(tensor_pb2.Tensor(dtype=99, shape=[2, 4], data=bytes(32))),  # type: ignore[arg-type]
        "hidden_states",
        "99",
    ),
    "no dtype": (
        hidden_batch(tensor_pb2.Tensor(shape=[2, 4], data=bytes(32))),
        "hidden_states",
        "0",
    ),
    "short data": (
        hidden_batch(tensor_pb2.Tensor(dtype=1, shape=[2, 4], data=bytes(31))),  # type: ignore[arg-type]
        "hidden_states",
        "31",
    ),
    "long data": (
        hidden_batch(tensor_pb2.Tensor(dtype=1, shape=[2, 4], data=bytes(33))),  # type: ignore[arg-type]
        "hidden_states",
        "33",
    ),
    "huge shape": (
        hidden_batch(tensor_pb2.Tensor(dtype=1, shape=[2**32 - 1] * 4, data=b"")),  # type: ignore[arg-type]
        "hidden_states",
        "4294967295",
    ),
    "no shape": (
        hidden_batch(tensor_pb2.Tensor(dtype=1, data=bytes(32))),  # type: ignore[arg-type]
        "hidden_states",
        "[]",
    ),
}


@pytest.mark.parametrize("case", BAD_HIDDEN_STATES)
async def test_hidden_states_must_have_the_exact_shape_dtype_and_length(
    case: str, middle: OpenedStream
) -> None:
    batch, field, number = BAD_HIDDEN_STATES[case]

    error = await middle.failure(batch)

    assert isinstance(error, InvalidArgumentError)
    assert error.field == field
    assert number in error.message
    assert len(await middle.hidden(hidden_batch(hidden_states()))) == 2


BAD_LOGITS: dict[str, tuple[dict[str, object], str]] = {
    "row beyond the rows": ({"row": 2}, "row"),
    "no candidates": ({"num_candidates": 0}, "num_candidates"),
    "more contenders than tokens": ({"num_contenders": VOCAB_SIZE + 1}, "num_contenders"),
    "no mass": ({"min_mass": 0.0}, "min_mass"),
    "mass above one": ({"min_mass": 1.5}, "min_mass"),
    "mass not a number": ({"min_mass": math.nan}, "min_mass"),
    "negative gap": ({"min_gap": -1.0}, "min_gap"),
    "infinite gap": ({"min_gap": math.inf}, "min_gap"),
    "temperature zero": ({"temperature": 0.0}, "temperature"),
    "negative temperature": ({"temperature": -1.0}, "temperature"),
    "infinite temperature": ({"temperature": math.inf}, "temperature"),
    "temperature not a number": ({"temperature": math.nan}, "temperature"),
    "id beyond the vocabulary": ({"token_ids": [VOCAB_SIZE]}, "token_ids"),
}


@pytest.mark.parametrize("case", BAD_LOGITS)
async def test_a_bad_logits_request_is_refused_by_field(case: str, last: OpenedStream) -> None:
    changes, field = BAD_LOGITS[case]
    good = stage_pb2.LogitsRequest(row=1, num_candidates=3)
    values: dict[str, object] = {"row": 1, "num_candidates": 3}
    bad = stage_pb2.LogitsRequest(**(values | changes))  # type: ignore[arg-type]

    error = await last.failure(hidden_batch(hidden_states(), good, bad))

    assert isinstance(error, InvalidArgumentError)
    assert error.field == f"logits[1].{field}"
    result = await last.run(hidden_batch(hidden_states(), good))
    assert [row.row for row in result.logits] == [1]


BAD_PROMPT_LOGITS: dict[str, tuple[dict[str, object], str]] = {
    "no token": ({"token_ids": []}, ".token_ids"),
    "id beyond the vocabulary": ({"token_ids": [VOCAB_SIZE]}, ".token_ids"),
    "rows that were asked for": ({"first_row": 0}, ".first_row"),
    "more rows than there are": ({"token_ids": [1, 2]}, ""),
    "many candidates": ({"num_candidates": 21}, ".num_candidates"),
}


@pytest.mark.parametrize("case", BAD_PROMPT_LOGITS)
async def test_a_bad_request_for_rows_of_a_prompt_is_refused_by_field(
    case: str, last: OpenedStream
) -> None:
    changes, field = BAD_PROMPT_LOGITS[case]
    values: dict[str, object] = {"first_row": 1, "token_ids": [1], "num_candidates": 2}
    good = stage_pb2.PromptLogitsRequest(first_row=0, token_ids=[3], num_candidates=0)
    bad = stage_pb2.PromptLogitsRequest(**(values | changes))  # type: ignore[arg-type]
    batch = hidden_batch(hidden_states())
    batch.prompt_logits.extend([good, bad])

    error = await last.failure(batch)

    assert isinstance(error, InvalidArgumentError)
    assert error.field == f"prompt_logits[1]{field}"
    batch = hidden_batch(hidden_states())
    batch.prompt_logits.append(good)
    assert not (await last.run(batch)).HasField("status")


BAD_HIDDEN_SUMS: dict[str, tuple[list[tuple[int, int]], str]] = {
    "no row": ([(0, 0)], "hidden_sums[0].num_rows"),
    "more rows than there are": ([(1, 2)], "hidden_sums[0]"),
    "more sums than slices": ([(0, 1), (1, 1)], "hidden_sums"),
}


@pytest.mark.parametrize("case", BAD_HIDDEN_SUMS)
async def test_a_bad_request_for_hidden_states_is_refused_by_field(
    case: str, last: OpenedStream
) -> None:
    requests, field = BAD_HIDDEN_SUMS[case]
    batch = hidden_batch(hidden_states())
    for first_row, num_rows in requests:
        batch.hidden_sums.add(first_row=first_row, num_rows=num_rows)

    error = await last.failure(batch)

    assert isinstance(error, InvalidArgumentError)
    assert error.field == field
    batch = hidden_batch(hidden_states())
    batch.hidden_sums.add(first_row=1, num_rows=1)
    result = await last.run(batch)
    assert [list(one.sum.shape) for one in result.hidden_sums] == [[HIDDEN_SIZE]]


async def test_sums_of_rows_that_were_asked_for_are_refused(last: OpenedStream) -> None:
    batch = hidden_batch(hidden_states())
    batch.slices[0].num_tokens = 1
    batch.slices.add(kv_slot=batch.slices[0].kv_slot + 1, num_tokens=1)
    batch.hidden_sums.add(first_row=1, num_rows=1)
    batch.hidden_sums.add(first_row=1, num_rows=1)
    error = await last.failure(batch)
    assert isinstance(error, InvalidArgumentError)
    assert error.field == "hidden_sums[1].first_row"


async def test_more_logits_than_one_full_row_a_sequence_are_refused(last: OpenedStream) -> None:
    full_row = stage_pb2.LogitsRequest(row=0, num_candidates=VOCAB_SIZE)
    most = [full_row] * 8

    assert not (await last.run(hidden_batch(hidden_states(), *most))).HasField("status")
    error = await last.failure(hidden_batch(hidden_states(), *most, full_row))

    assert isinstance(error, InvalidArgumentError)
    assert error.field == "logits"
    assert str(8 * VOCAB_SIZE * 4) in error.message


async def test_a_request_that_may_fall_back_to_the_full_row_counts_as_one(
    last: OpenedStream,
) -> None:
    request = stage_pb2.LogitsRequest(row=0, num_candidates=1, min_mass=0.9)

    error = await last.failure(hidden_batch(hidden_states(), *[request] * 9))

    assert isinstance(error, InvalidArgumentError)


async def test_logits_come_back_reduced_or_full_as_asked(last: OpenedStream) -> None:
    reduced = stage_pb2.LogitsRequest(row=1, num_candidates=2, token_ids=[5, 6])
    full = stage_pb2.LogitsRequest(row=0, num_candidates=VOCAB_SIZE)

    result = await last.run(hidden_batch(hidden_states(), reduced, full))

    assert not result.HasField("hidden_states")
    assert [row.row for row in result.logits] == [1, 0]
    assert list(result.logits[0].candidate_logits) == [VOCAB_SIZE - 1, VOCAB_SIZE - 2]
    assert len(result.logits[0].token_logits) == 2
    assert not result.logits[0].HasField("full")
    assert list(result.logits[1].full.shape) == [VOCAB_SIZE]
    assert len(result.logits[1].full.data) == VOCAB_SIZE * 4


async def test_a_micro_batch_of_slot_operations_alone_is_answered_without_a_tensor(
    first: OpenedStream,
) -> None:
    await first.run(micro_batch((0, 0, 3)))

    result = await first.run(slot_op(free=stage_pb2.FreeSlot(kv_slot=0)))

    assert not result.HasField("status")
    assert not result.HasField("hidden_states")
    assert isinstance(await first.failure(micro_batch((0, 3, 1))), StaleStateError)


async def test_slot_operations_are_applied_before_the_forward(first: OpenedStream) -> None:
    await first.run(micro_batch((0, 0, 4)))
    batch = micro_batch((1, 2, 2), token_ids=[2, 3])
    fork = stage_pb2.ForkSlot(source_kv_slot=0, target_kv_slot=1, num_tokens=2)
    batch.slot_ops.append(stage_pb2.SlotOp(fork=fork))

    assert await first.hidden(batch) == (await first.hidden(micro_batch((2, 0, 4))))[2:]


@pytest.mark.parametrize(
    "data",
    [b"\xff" * 40, b"\x12\xff\xff\xff\xff\x7f", b"\x00", bytes(range(256)) * 8],
    ids=["ones", "length beyond the end", "field number zero", "every byte"],
)
@pytest.mark.parametrize("opened", [False, True])
async def test_random_bytes_end_the_stream_typed_and_the_server_lives(
    data: bytes, opened: bool
) -> None:
    engine = ArithmeticEngine(arithmetic_info())
    async with running_stage(engine) as stage:
        # Without serializers: requests are sent, and answers read, as bytes.
        call: ForwardCall = stage.channel.stream_stream("/stagecoach.v1.StageService/Forward")()
        if opened:
            await call.write(opening().SerializeToString())  # type: ignore[arg-type]
            await call.read()
        with may_have_ended():
            await call.write(data)  # type: ignore[arg-type]

        error = await OpenedStream(call).end_error()

        assert isinstance(error, InvalidArgumentError)
        assert engine.num_forwards == 0
        canary = await stage.open(epoch=2)
        assert len(await canary.hidden(micro_batch((0, 0, 2)))) == 2


async def test_garbage_in_get_info_is_ignored_because_it_has_no_fields() -> None:
    async with running_stage() as stage:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = stage.channel.unary_unary(
            "/stagecoach.v1.StageService/GetInfo"
        )
        answer = stage_pb2.GetInfoResponse.FromString(await call(b"\xff" * 9))
        assert answer.num_model_layers == 6
