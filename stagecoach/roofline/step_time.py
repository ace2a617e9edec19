"""How long a stage takes for a micro-batch on a GPU, as the engine of this project computes it.

Each kind of kernel has a roofline of its own, and kernels run one after the other: what memory
limits does not hide behind what arithmetic limits. Beside weights and KV it counts what kernels
pass to each other, launches, and copies between host and device. `tests/gpu/test_steps.py`
holds these counts against the engine. Left out are sliding windows, which would read less KV of
long sequences, and that a matrix of which a file has parts in 4 and in 8 bits is multiplied in two.
"""

from typing import NamedTuple

from stagecoach.roofline.devices import Gpu
from stagecoach.roofline.few_bits import MAX_FEW_TOKENS, max_few_tokens, num_unpacked_parts
from stagecoach.roofline.model_shape import LEAN_LAUNCHES, ModelShape
from stagecoach.roofline.stage_cost import StageCost
from stagecoach.roofline.work import Work

KERNEL_GAP_S = 3e-6
"""Time from the end of one kernel's work to the start of the next one's: one drains, the other
ramps up. It is what small kernels cost on a device that does not wait for its host."""

LAUNCH_S = 10e-6
"""Host time of a launch. An operator of torch takes 7 us on a core of 2024 (AMD Zen 5); the cores
of boxes with cheap GPUs are older."""

COPY_S = 15e-6
"""Time of a copy between host and device, besides that of its bytes."""

COPIED_BYTES_PER_S = 12e9
"""Rate of copies from and to pinned memory, over 16 lanes of PCI Express 3.0 or 8 of 4.0."""

MAX_GRAPH_ROWS = 256
"""Sequences of the largest decode step that is launched as a CUDA graph, where that is quicker;
with more, a card has enough to do between launches."""

_STEP_LAUNCHES = 6
"""Before and after the layers, without logits."""

_HEAD_LAUNCHES = 16
"""Kernel launches of the head, and of the reduction of its logits to what greedy sampling wants."""

_MOVED_LOGIT_BYTES = 44
"""Bytes that pass memory for each logit while it is reduced: some ten times its float32."""

_CHUNK_LAUNCHES = 4
"""More in each layer, for each sequence that runs several tokens."""

_UNPACKED_PART_LAUNCHES = 2
"""Kernel launches that unpack a part of a matrix, and multiply by it."""

_EXPERT_LAUNCHES = 5
"""Kernel launches of an expert: two matrices, the activation, the product and where it goes."""

_ROUTING_LAUNCHES = 14
"""Kernel launches that order the tokens of a layer by their experts, and add up what these made."""

_CODED_EMBEDDING_LAUNCHES = 6
"""More kernel launches where embeddings are codes: these, scales and offsets are looked up."""

_MOVED_CODE_BYTES = 28
"""Bytes that pass memory for each number of an embedding, which is a float32 on the way."""

_SCALES_LAUNCHES = 1
"""Kernel launches that clear the scales of new blocks."""

_CONVERTED_CHUNK_LAUNCHES = 13
"""The same where torch attends a chunk whose keys and values are converted before."""

_DECODING_BYTES = 16
"""Bytes that pass memory for each number that is decoded, which is a float32 on the way."""

_OWN_CHUNK_LAUNCHES = 1
"""Kernel launches of a chunk's attention where a kernel of ours attends it: nothing is gathered,
and rows are written in place."""


class StageTime(NamedTuple):
    """Time of a micro-batch on one stage, by what it is spent on; the sum is how long it takes."""

    bandwidth_s: float
    """Time in kernels that memory limits."""
    compute_s: float
    """Time in kernels that arithmetic limits."""
    host_s: float
    """Time in launching kernels and in copies, as far as the device waits for them."""

    @property
    def total_s(self) -> float:
        """Time from the arrival of the inputs on the host to that of the outputs."""
        return sum(self)


class KernelWork(NamedTuple):
    """What one kind of kernel does in a micro-batch."""

    moved_bytes: int
    """Bytes that move between the GPU's memory and its processors."""
    flops: int
    """A multiplication and an addition count two."""


def step_time(stage: StageCost, work: Work, gpu: Gpu, *, efficiency: float = 1.0) -> StageTime:
    """Returns the time of a micro-batch.

    Args:
        stage: The stage.
        work: The micro-batch, at least one token.
        gpu: What computes it.
        efficiency: Share (0, 1] of its published figures that the GPU reaches.
    """
    num_few = max_few_tokens(gpu.capability)
    has_tensor_cores = gpu.capability.has_tensor_cores
    bandwidth_s = compute_s = 0.0
    for kernels in (
        unpacking_work(stage, work, num_few),
        matrices_work(stage, work, num_few),
        attention_work(stage, work, has_tensor_cores=has_tensor_cores),
        elementwise_work(stage, work),
        head_work(stage, work),
    ):
        moving_s = kernels.moved_bytes / gpu.bandwidth_bytes_per_s / efficiency
        computing_s = kernels.flops / gpu.flops_per_s / efficiency
        if moving_s >= computing_s:
            bandwidth_s += moving_s
        else:
            compute_s += computing_s
    # The host launches ahead, and is waited for only where it takes longer than the device.
    launching_s = max(
        num_launches(stage, work, num_few, has_tensor_cores=has_tensor_cores) * KERNEL_GAP_S,
        num_host_launches(stage, work, num_few, has_tensor_cores=has_tensor_cores) * LAUNCH_S
        - bandwidth_s
        - compute_s,
    )
    # Hidden states in and out. Ids and logits are fewer bytes, and stages with ends no faster.
    copied_bytes = 2 * work.num_tokens * stage.model.hidden_bytes_per_token
    copying_s = 2 * COPY_S + copied_bytes / COPIED_BYTES_PER_S
    return StageTime(bandwidth_s, compute_s, launching_s + copying_s)


def unpacking_work(stage: StageCost, work: Work, num_few: int = MAX_FEW_TOKENS) -> KernelWork:
    """Matrices in few bits are unpacked where many tokens are multiplied by them."""
    if not _unpacks(stage, work, num_few):
        return KernelWork(0, 0)
    model = stage.model
    touched = stage.touched(work.num_tokens)
    return KernelWork(touched.num_bytes + touched.parameters * _size(model), 0)


def _unpacks(stage: StageCost, work: Work, num_few: int) -> bool:
    return stage.model.is_in_few_bits and work.num_tokens > num_few


def matrices_work(stage: StageCost, work: Work, num_few: int = MAX_FEW_TOKENS) -> KernelWork:
    """Matrices of the layers: each is read once, whatever the number of rows.

    Of experts those are read that some token chose.
    """
    model, num_layers = stage.model, len(stage.layers)
    matrices = stage.matrices
    touched = matrices.of_share(model.touched_share(work.num_tokens))
    weight_bytes = touched.num_bytes + stage.norm_bytes
    if _unpacks(stage, work, num_few):
        weight_bytes += touched.parameters * _size(model) - touched.num_bytes
        # Inputs are read again for each part of a matrix.
        again = sum(
            (num_parts - 1) * columns
            for (_, columns), num_parts in zip(model.layer_matrices, _parts(model), strict=True)
        )
        weight_bytes += num_layers * work.num_tokens * again * _size(model)
    a_token = (
        4 * model.hidden_size + 2 * model.attention_width + model.kv_width + 3 * model.mlp_width
    )
    return KernelWork(
        weight_bytes + num_layers * work.num_tokens * a_token * _size(model),
        2 * matrices.of_share(model.chosen_share).parameters * work.num_tokens,
    )


def attention_work(stage: StageCost, work: Work, *, has_tensor_cores: bool = True) -> KernelWork:
    """Attention: writes new keys and values, and reads those of every sequence once.

    For a chunk behind a context they are gathered before, unless a kernel of ours attends it; for
    any chunk they are converted, if they are kept in another format.
    """
    model, num_layers = stage.model, len(stage.layers)
    kv_tokens = work.num_context_tokens + work.num_tokens
    converted_bytes = 0
    if not model.reads_context_in_place(has_tensor_cores=has_tensor_cores):
        kv_tokens += 2 * work.num_gathered_tokens
        if model.has_foreign_kv:
            converted_bytes = work.num_chunk_context_tokens * _conversion_bytes(model)
    a_token = 2 * model.attention_width * _size(model)
    return KernelWork(
        kv_tokens * stage.kv_bytes_per_token
        + num_layers * (work.num_tokens * a_token + converted_bytes),
        num_layers * 4 * model.attention_width * work.num_attended_tokens,
    )


def _conversion_bytes(model: ModelShape) -> int:
    """Bytes that move while keys and values of a token in a layer are converted and read again."""
    decoding = _DECODING_BYTES if model.precision.kv.dtype is None else 0
    return model.kv_bytes_per_token_and_layer + model.kv_width * (decoding + 2 * _size(model))


def elementwise_work(stage: StageCost, work: Work) -> KernelWork:
    """What lies between matrices: norms, residuals, rotation, activation, the embedding.

    That of transformers' modules comes in more kernels, each of which moves about three rows.
    """
    model, num_layers = stage.model, len(stage.layers)
    more_launches = model.layer_launches - LEAN_LAUNCHES
    a_token = (
        (8 + 3 * more_launches) * model.hidden_size
        + 2 * model.attention_width
        + model.kv_width
        + 3 * model.mlp_width
    )
    num_bytes = num_layers * work.num_tokens * a_token * _size(model)
    if stage.is_first:
        num_bytes += work.num_tokens * model.embedding_row_bytes
        if model.has_coded_embedding:
            num_bytes += work.num_tokens * model.hidden_size * _MOVED_CODE_BYTES
    return KernelWork(num_bytes, 0)


def head_work(stage: StageCost, work: Work) -> KernelWork:
    """The head, which is read only for logits, and what greedy sampling wants of these."""
    model = stage.model
    if not stage.is_last or not work.num_logit_rows:
        return KernelWork(0, 0)
    num_logits = work.num_logit_rows * model.vocab_size
    return KernelWork(
        model.head_bytes + num_logits * _MOVED_LOGIT_BYTES, 2 * num_logits * model.hidden_size
    )


def num_launches(
    stage: StageCost, work: Work, num_few: int = MAX_FEW_TOKENS, *, has_tensor_cores: bool = True
) -> int:
    """Kernels that run for a micro-batch."""
    model = stage.model
    a_layer = model.layer_launches + _chunk_launches(model, has_tensor_cores) * work.num_chunks
    if model.num_experts > 1:
        num_touched = round(model.num_experts * model.touched_share(work.num_tokens))
        a_layer += _ROUTING_LAUNCHES + _EXPERT_LAUNCHES * num_touched
    if _unpacks(stage, work, num_few):
        a_layer += _UNPACKED_PART_LAUNCHES * sum(_parts(model)) - len(model.layer_matrices)
    return len(stage.layers) * a_layer + _launches_besides(stage, work)


def _chunk_launches(model: ModelShape, has_tensor_cores: bool) -> int:
    if model.reads_context_in_place(has_tensor_cores=has_tensor_cores):
        return _OWN_CHUNK_LAUNCHES
    return _CONVERTED_CHUNK_LAUNCHES if model.has_foreign_kv else _CHUNK_LAUNCHES


def num_host_launches(
    stage: StageCost, work: Work, num_few: int = MAX_FEW_TOKENS, *, has_tensor_cores: bool = True
) -> int:
    """What the host launches for a micro-batch: steps that only decode are one graph."""
    is_graph = (
        stage.model.layer_launches == LEAN_LAUNCHES
        and not work.num_chunks
        and work.num_tokens <= MAX_GRAPH_ROWS
    )
    if is_graph:
        return 1 + _launches_besides(stage, work)
    return num_launches(stage, work, num_few, has_tensor_cores=has_tensor_cores)


def _launches_besides(stage: StageCost, work: Work) -> int:
    has_logits = stage.is_last and work.num_logit_rows
    has_scales = stage.model.precision.kv.dtype is None
    return (
        _STEP_LAUNCHES
        + (_HEAD_LAUNCHES if has_logits else 0)
        + (_SCALES_LAUNCHES if has_scales else 0)
        + (_CODED_EMBEDDING_LAUNCHES if stage.is_first and stage.model.has_coded_embedding else 0)
    )


def _parts(model: ModelShape) -> list[int]:
    """In how many parts each matrix of a layer is unpacked."""
    return [num_unpacked_parts(*shape, _size(model)) for shape in model.layer_matrices]


def _size(model: ModelShape) -> int:
    return model.precision.compute.itemsize
