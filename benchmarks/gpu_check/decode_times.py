"""How long a stage takes to decode a batch, measured in this process, without a coordinator."""

import time
from itertools import accumulate
from statistics import median
from typing import NamedTuple

from benchmarks.gpu_check.stage_runs import forward
from stage_server.compute.torch_engine import TorchEngine
from stage_server.core.batch import SequenceSlice
from stagecoach.contract.logits_request import LogitsRequest
from stagecoach.contract.precision import DType, Precision
from stagecoach.model_files import ModelConfig
from stagecoach.roofline.model_shape import ModelShape
from stagecoach.roofline.stage_cost import StageCost
from stagecoach.roofline.work import Work


class DecodeTime(NamedTuple):
    """Of a decode."""

    step_s: float
    """Median, from token ids on the host to results on the host."""
    moved_bytes: int
    """Weights and KV that such a step reads and writes, as the planner counts them."""


def decode_time(
    engine: TorchEngine,
    config: ModelConfig,
    dtype: DType,
    batch: int,
    *,
    context: int,
    num_steps: int,
) -> DecodeTime:
    """Decodes greedily with a batch of sequences of one length; frees the slots at the end.

    Args:
        engine: Of a whole model.
        config: Of the model.
        dtype: Of the engine.
        batch: Sequences.
        context: Tokens that each holds before the first step.
        num_steps: Counted steps, after some that warm up.
    """
    for slot in range(batch):
        _run(engine, [SequenceSlice(slot, 0, context)])
    num_warm = max(2, num_steps // 4)
    times_s = []
    for position in range(context, context + num_warm + num_steps):
        slices = [SequenceSlice(slot, position, 1) for slot in range(batch)]
        started_s = time.perf_counter()
        _run(engine, slices)
        times_s.append(time.perf_counter() - started_s)
    engine.free_all_slots()
    model = ModelShape.of(config, Precision.uniform(dtype))
    cost = StageCost(model=model, layers=engine.info.layers)
    work = Work.decode(batch, context + num_warm + num_steps // 2)
    return DecodeTime(median(times_s[num_warm:]), cost.moved_bytes(work))


def _run(engine: TorchEngine, slices: list[SequenceSlice]) -> None:
    """One micro-batch of any tokens; the next token of each sequence is asked for."""
    ends = list(accumulate(piece.num_tokens for piece in slices))
    token_ids = [row % engine.info.vocab_size for row in range(ends[-1])]
    forward(engine, slices, token_ids, [LogitsRequest(row=e - 1, num_candidates=1) for e in ends])
