"""Which layers each of several boxes holds, so that every one of them works it out alike.

The same exact division as the planner's, by what is known without asking the other boxes: nothing,
or how much memory each of them has.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

from stagecoach.contract.errors import InsufficientMemoryError, InvalidArgumentError
from stagecoach.contract.layer_range import LayerRange
from stagecoach.contract.precision import DType, Precision
from stagecoach.model_files.config import ModelConfig
from stagecoach.model_files.model_files import KeptMatrices
from stagecoach.roofline.model_shape import ModelShape
from stagecoach.roofline.split import StageFit, best_split
from stagecoach.roofline.stage_cost import StageCost
from stagecoach.roofline.work import Work

_PARTS = 10**9
"""Parts of a stage's memory in which the share that its weights fill is counted."""


def split_layers(
    config: ModelConfig,
    num_stages: int,
    memory_bytes: Sequence[int] | None = None,
    *,
    kept: KeptMatrices | None = None,
    field: str = "stage",
) -> list[LayerRange]:
    """Divides a model's layers over stages.

    Without `memory_bytes` the boxes are taken to be alike, and the slowest stage is as fast as it
    can be: the head counts as the layers whose time it takes. With it, the weights fill as equal a
    share of each box's memory as whole layers allow, so that all have a like share left for KV.

    Args:
        config: The model.
        num_stages: Stages, in pipeline order.
        memory_bytes: Memory of each stage's device.
        kept: What matrices take where they are kept in the bits of their files; counts beside
            `memory_bytes` alone.
        field: What `num_stages` comes from, for the error.

    Returns:
        The layers of each stage, in order.

    Raises:
        InvalidArgumentError: There are fewer layers than stages, no stage, or not one memory for
            each stage.
        InsufficientMemoryError: The weights do not fit.
        UnsupportedModelError: The cost of this model's layers is not known.
    """
    if not 1 <= num_stages <= config.num_layers:
        raise InvalidArgumentError(
            f"{field}: {config.num_layers} layers cannot be split over {num_stages} stages",
            field=field,
        )
    if memory_bytes is not None and len(memory_bytes) != num_stages:
        raise InvalidArgumentError(
            f"stage_memory has {len(memory_bytes)} sizes, must have one for each of"
            f" {num_stages} stages",
            field="stage_memory",
        )
    precision = Precision.uniform(DType.FLOAT16)
    if memory_bytes is None or kept is None:
        model = ModelShape.of(config, precision)
    else:
        model = ModelShape.of(config, precision._replace(weights=kept.encoding), kept)
    options = [
        [None, *_fits(model, memory, is_first=stage == 0, is_last=stage == num_stages - 1)]
        for stage, memory in enumerate(memory_bytes or [None] * num_stages)
    ]
    counts = best_split(options)
    if counts is None:
        assert memory_bytes is not None, "without a memory, everything fits"
        raise InsufficientMemoryError(
            f"the model does not fit: {model.num_layers} layers take {model.weight_bytes} bytes of"
            f" weights, the {num_stages} stages have {sum(memory_bytes)} bytes of memory",
            weight_bytes=model.weight_bytes,
            memory_bytes=sum(memory_bytes),
        )
    starts = [sum(counts[:stage]) for stage in range(num_stages + 1)]
    return [LayerRange(start, end) for start, end in pairwise(starts)]


def _fits(
    model: ModelShape, memory_bytes: int | None, *, is_first: bool, is_last: bool
) -> Iterator[StageFit | None]:
    """What one stage would be with 1, 2, ... layers."""
    for count in range(1, model.num_layers + 1):
        cost = StageCost.of_count(model, count, is_first=is_first, is_last=is_last)
        yield _fit(cost, memory_bytes)


def _fit(cost: StageCost, memory_bytes: int | None) -> StageFit | None:
    """One stage, as the division compares it; None when its weights do not fit."""
    if memory_bytes is None:
        spare_bytes = cost.model.weight_bytes  # alike for all, whatever it is
        load = cost.moved_bytes(Work.decode(1, 0))
    else:
        spare_bytes = memory_bytes
        load = cost.weight_bytes * _PARTS // memory_bytes
        if load >= _PARTS:
            return None
    return StageFit(load, (spare_bytes - cost.weight_bytes) // cost.kv_bytes_per_token)
