"""Runs sequences in this process through one stage that has a whole model."""

import gc
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path

import torch

from benchmarks.gpu_check.subject import Subject
from stage_server.compute.torch_engine import TorchEngine, build_engine
from stage_server.core.batch import ForwardBatch, LogitsRow, SequenceSlice
from stage_server.core.config import StageConfig
from stagecoach.contract.layer_range import LayerRange
from stagecoach.contract.logits_request import LogitsRequest
from stagecoach.contract.precision import DType
from stagecoach.model_files import open_model

_NUM_DECODED = (7, 8, 4)
"""Tokens at the end of each, which are run one a step."""


def load_engine(
    subject: Subject, model: str | Path, dtype: DType, *, kv_memory_bytes: int | None
) -> TorchEngine:
    """Loads a whole model as a stage does, ready to compute.

    Its memory is given back by `release`, once the caller refers to it no more.

    Args:
        subject: Has the device.
        model: As `--model` takes it.
        dtype: Of the weights.
        kv_memory_bytes: None: what is left, as by default.

    Raises:
        IncompatibleError: As `build_engine`.
    """
    files = open_model(str(model))
    config = StageConfig(
        model=str(model),
        layers=LayerRange(0, files.config.num_layers),
        device=subject.chosen.name,
        dtype=dtype,
        kv_memory_bytes=kv_memory_bytes,
    )
    engine = build_engine(config, files)
    engine.warm_up()
    return engine


def release(device: torch.device) -> None:
    """Gives memory that nothing refers to back to the device."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def forced_logits(engine: TorchEngine, sequences: Sequence[Sequence[int]]) -> torch.Tensor:
    """Runs three given sequences in all kinds of steps, and takes the logits of every row.

    First chunks of prompts, a later chunk beside a decode, decodes beside a first chunk, and
    decodes of one, two and three sequences of unequal lengths.

    Args:
        engine: Of a whole model.
        sequences: Token ids, at least ten each, as `random_sequences` makes them.

    Returns:
        float32 `[num_tokens, vocab_size]` on the CPU: the rows of the first sequence, then of the
        second, then of the third.
    """
    rows: list[list[torch.Tensor]] = [[] for _ in sequences]
    for step in _mixed_steps([len(sequence) for sequence in sequences]):
        token_ids = [
            token
            for piece in step
            for token in sequences[piece.kv_slot][piece.start_position : piece.end_position]
        ]
        found = forward(engine, step, token_ids, _every_row(engine, len(token_ids)))
        ends = list(accumulate(piece.num_tokens for piece in step))
        for piece, end in zip(step, ends, strict=True):
            for row in found[end - piece.num_tokens : end]:
                assert row.full is not None, "all logits were asked for"
                rows[piece.kv_slot].append(row.full)
    engine.free_all_slots()
    return torch.stack([row for of_sequence in rows for row in of_sequence])


def greedy_tokens(engine: TorchEngine, prompt: Sequence[int], num_tokens: int) -> list[int]:
    """Runs a prompt as one micro-batch, and decodes greedily; frees the slots at the end.

    The logits of every row are computed and reduced, as for log-probabilities of the prompt.

    Raises:
        DeviceMemoryError: Not even a row fits the device; the slots are free.
    """
    try:
        piece = SequenceSlice(0, 0, len(prompt))
        output = [_greedy(engine, piece, prompt)]
        while len(output) < num_tokens:
            piece = SequenceSlice(0, piece.end_position, 1)
            output.append(_greedy(engine, piece, output[-1:]))
        return output
    finally:
        engine.free_all_slots()


def forward(
    engine: TorchEngine,
    slices: Sequence[SequenceSlice],
    token_ids: Sequence[int],
    wanted: Sequence[LogitsRequest],
) -> Sequence[LogitsRow]:
    """Runs one micro-batch of a stage that has a whole model; returns what was wanted, in order."""
    batch = ForwardBatch(
        slices=tuple(slices), token_ids=torch.tensor(token_ids), logits=tuple(wanted)
    )
    return engine.forward(batch).logits


def random_sequences(lengths: Sequence[int], vocab_size: int) -> list[list[int]]:
    """Makes sequences of token ids, the same ones each time, without special tokens."""
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randint(3, vocab_size, (length,), generator=generator).tolist() for length in lengths
    ]


def _greedy(engine: TorchEngine, piece: SequenceSlice, token_ids: Sequence[int]) -> int:
    wanted = [LogitsRequest(row=row, num_candidates=1) for row in range(piece.num_tokens)]
    return forward(engine, [piece], token_ids, wanted)[-1].candidate_ids[0]


def _every_row(engine: TorchEngine, num_rows: int) -> list[LogitsRequest]:
    vocab_size = engine.info.vocab_size
    return [LogitsRequest(row=row, num_candidates=vocab_size) for row in range(num_rows)]


def _mixed_steps(lengths: Sequence[int]) -> Iterator[list[SequenceSlice]]:
    first, second, third = (
        length - num_decoded for length, num_decoded in zip(lengths, _NUM_DECODED, strict=True)
    )
    half = first // 2
    yield [SequenceSlice(0, 0, half), SequenceSlice(1, 0, second)]
    yield [SequenceSlice(1, second, 1), SequenceSlice(0, half, first - half)]
    yield [SequenceSlice(0, first, 1), SequenceSlice(2, 0, third), SequenceSlice(1, second + 1, 1)]
    held = [first + 1, second + 2, third]
    while held != list(lengths):
        step = [
            SequenceSlice(slot, held[slot], 1) for slot in range(3) if held[slot] < lengths[slot]
        ]
        yield step
        for piece in step:
            held[piece.kv_slot] += 1
