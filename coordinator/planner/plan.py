"""Which GPU holds which layers, and what each has left for KV."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from coordinator.core.limits import MAX_STAGES
from stagecoach.contract.errors import InsufficientMemoryError, InvalidArgumentError
from stagecoach.contract.layer_range import LayerRange
from stagecoach.roofline.devices import Gpu
from stagecoach.roofline.kv_memory import KV_BLOCK_SIZE, kv_memory_bytes, num_kv_blocks
from stagecoach.roofline.model_shape import ModelShape
from stagecoach.roofline.split import Options, SplitScore, StageFit, best_split, score
from stagecoach.roofline.stage_cost import StageCost
from stagecoach.roofline.step_time import step_time
from stagecoach.roofline.work import Work


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePlan:
    """A stage of a plan: its GPU, its layers and the room that is left for KV."""

    gpu: Gpu
    gpu_index: int
    """Index of the stage's GPU among those that were given."""
    cost: StageCost
    kv_bytes: int
    """Room for KV: the share of the GPU's memory that stages take by default."""

    @property
    def kv_tokens(self) -> int:
        """Tokens that it has room for, in whole blocks."""
        return num_kv_blocks(self.cost, self.kv_bytes, KV_BLOCK_SIZE) * KV_BLOCK_SIZE


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A cluster that fits."""

    model: ModelShape
    stages: tuple[StagePlan, ...]
    """Plans of the stages, in pipeline order."""

    @property
    def kv_tokens(self) -> int:
        """Tokens that the cluster can hold: those of its smallest stage."""
        return min(stage.kv_tokens for stage in self.stages)

    @property
    def is_reordered(self) -> bool:
        """True when the GPUs stand in another order than they were given in."""
        return [stage.gpu_index for stage in self.stages] != list(range(len(self.stages)))


def make_plan(
    model: ModelShape, gpus: Sequence[Gpu], *, context_tokens: int, min_kv_tokens: int
) -> Plan:
    """Divides a model over GPUs, so that the slowest stage is as fast as it can be.

    Time is that of decoding one sequence. The first stage also holds the embedding, and the last
    one also computes logits, so that the order of unequal GPUs matters: another one is taken only
    if it makes the plan better.

    Args:
        model: The model.
        gpus: All are used, one stage each.
        context_tokens: Length of the sequence whose step is timed.
        min_kv_tokens: Every stage must have room for the KV of this many.

    Raises:
        InsufficientMemoryError: It does not fit; says how much each GPU could hold.
        InvalidArgumentError: There are no GPUs, more than stages are allowed, or more than layers.
    """
    limit = min(MAX_STAGES, model.num_layers)
    if not 1 <= len(gpus) <= limit:
        raise InvalidArgumentError(
            f"gpu is given {len(gpus)} times, must be 1 to {limit} times for"
            f" {model.num_layers} layers",
            field="gpu",
        )
    planner = _Planner(model, gpus, context_tokens, min_kv_tokens)
    best: tuple[SplitScore, tuple[int, ...], tuple[int, ...]] | None = None
    for order in _orders(gpus):
        options = planner.options(order)
        split = best_split(options)
        if split is None:
            continue
        found = score(options, split)
        assert found is not None, "the split fits"
        if best is None or found < best[0]:  # the given order comes first and wins ties
            best = found, order, split
    if best is None:
        raise planner.refusal()
    return planner.plan(best[1], best[2])


class _Planner:
    """The costs of all stages that a plan could have."""

    def __init__(
        self, model: ModelShape, gpus: Sequence[Gpu], context_tokens: int, min_kv_tokens: int
    ) -> None:
        self._model = model
        self._gpus = gpus
        self._work = Work.decode(1, context_tokens)
        self._min_kv_tokens = min_kv_tokens

    def options(self, order: Sequence[int]) -> Options:
        """Everything that each stage could be, with the GPUs in this order."""
        last = len(order) - 1
        return [
            [None]
            + [
                self._fit(self._gpus[index], count, is_first=place == 0, is_last=place == last)
                for count in range(1, self._model.num_layers + 1)
            ]
            for place, index in enumerate(order)
        ]

    def plan(self, order: Sequence[int], split: Sequence[int]) -> Plan:
        stages = []
        start = 0
        for index, count in zip(order, split, strict=True):
            cost = StageCost(model=self._model, layers=LayerRange(start, start + count))
            stages.append(
                StagePlan(
                    gpu=self._gpus[index],
                    gpu_index=index,
                    cost=cost,
                    kv_bytes=kv_memory_bytes(cost, self._gpus[index]),
                )
            )
            start += count
        return Plan(model=self._model, stages=tuple(stages))

    def refusal(self) -> InsufficientMemoryError:
        """Says why nothing fits."""
        model = self._model
        held = ", ".join(
            f"{count} x {gpu.name} at most {self._most_layers(gpu)} layers each"
            for gpu, count in Counter(self._gpus).items()
        )
        memory_bytes = sum(gpu.memory_bytes for gpu in self._gpus)
        kv_bytes = self._min_kv_tokens * model.kv_bytes_per_token
        return InsufficientMemoryError(
            f"the model does not fit: {model.num_layers} layers take "
            f"{model.weight_bytes / 1e9:.2f} GB of weights and {kv_bytes / 1e9:.2f} GB of KV for "
            f"{self._min_kv_tokens} tokens, the GPUs have {memory_bytes / 1e9:.2f} GB; embedding "
            f"and head aside, {held}",
            weight_bytes=model.weight_bytes,
            kv_bytes=kv_bytes,
            memory_bytes=memory_bytes,
        )

    def _most_layers(self, gpu: Gpu) -> int:
        """Layers that fit a GPU without the embedding and the head."""
        counts = range(1, self._model.num_layers + 1)
        fits = (self._fit(gpu, count, is_first=False, is_last=False) for count in counts)
        return sum(fit is not None for fit in fits)

    def _fit(self, gpu: Gpu, count: int, *, is_first: bool, is_last: bool) -> StageFit | None:
        cost = StageCost.of_count(self._model, count, is_first=is_first, is_last=is_last)
        try:
            num_blocks = num_kv_blocks(cost, kv_memory_bytes(cost, gpu), KV_BLOCK_SIZE)
        except InsufficientMemoryError:
            return None
        kv_tokens = num_blocks * KV_BLOCK_SIZE
        if kv_tokens < self._min_kv_tokens:
            return None
        return StageFit(round(step_time(cost, self._work, gpu).total_s * 1e9), kv_tokens)


def _orders(gpus: Sequence[Gpu]) -> Iterator[tuple[int, ...]]:
    """The given order, and then one for each choice of the first and the last GPU by kind.

    The stages between them differ in nothing but their GPU, so their order changes no score.
    """
    indices = tuple(range(len(gpus)))
    yield indices
    seen = {(gpus[0].name, gpus[-1].name)}
    for first in indices:
        for last in indices:
            ends = (gpus[first].name, gpus[last].name)
            if first != last and ends not in seen:
                seen.add(ends)
                middle = (index for index in indices if index not in (first, last))
                yield first, *middle, last
