"""How much KV a GPU has room for beside the weights of its stage, and beside a micro-batch.

A stage server measures what its largest micro-batches take; a plan computes it. From there on both
reckon alike.
"""

from stagecoach.contract.errors import InsufficientMemoryError
from stagecoach.roofline.activation_memory import activation_bytes
from stagecoach.roofline.devices import Gpu
from stagecoach.roofline.stage_cost import StageCost

KV_BLOCK_SIZE = 16
"""Tokens in a block of KV, when nothing else is asked for."""

DEFAULT_MAX_NUM_SEQS = 256
"""Sequences at once, when nothing else is asked for."""

MAX_DEFAULT_BATCHED_TOKENS = 2048
"""Tokens in a micro-batch, when nothing else is asked for, wherever there is memory for them."""

_SMALL_DEVICE_BYTES = 14 * 2**30
_SMALL_DEVICE_BATCHED_TOKENS = 512
"""What they are on GPUs below 16 GB, some of which report less than 15 GiB: the memory of their
activations is worth more as KV, and a chunk of 512 tokens still computes for longer than it reads
the weights."""

CONTEXT_BYTES = 768 * 2**20
"""What a process takes of a GPU besides tensors: CUDA's context, the code of kernels, workspaces
of cuBLAS, and what the driver keeps back of the memory on the label."""

RESERVE_BYTES = 256 * 2**20
"""Left alone when nothing else is asked for: for holes between tensors, for kernels that are loaded
later, and for what else a GPU's owner runs on it, such as a screen."""


def default_num_batched_tokens(memory_bytes: int | None) -> int:
    """Returns how many tokens a micro-batch may hold when nothing else is asked for.

    Args:
        memory_bytes: Memory of the GPU, as it reports it or as its label says; None: there is none.
    """
    if memory_bytes is not None and memory_bytes < _SMALL_DEVICE_BYTES:
        return _SMALL_DEVICE_BATCHED_TOKENS
    return MAX_DEFAULT_BATCHED_TOKENS


def kv_bytes_left(free_bytes: int, activations_bytes: int) -> int:
    """Returns what KV takes of what is free, when nothing else is asked for; at least 0."""
    return max(0, free_bytes - activations_bytes - RESERVE_BYTES)


def kv_memory_bytes(
    stage: StageCost,
    gpu: Gpu,
    wanted_bytes: int | None = None,
    *,
    max_num_batched_tokens: int | None = None,
    max_num_seqs: int = DEFAULT_MAX_NUM_SEQS,
    max_model_len: int | None = None,
) -> int:
    """Returns the bytes of KV memory of a stage.

    Args:
        stage: The stage.
        gpu: Where it lives.
        wanted_bytes: What was asked for; None: what weights and the largest micro-batch leave.
        max_num_batched_tokens: Tokens in a micro-batch; None: as many as by default.
        max_num_seqs: Sequences in it.
        max_model_len: Tokens of the longest sequence; None: the model's.

    Raises:
        InsufficientMemoryError: Weights, weights and the wanted KV, or weights and a micro-batch
            do not fit.
    """
    memory_bytes = gpu.memory_bytes
    left_bytes = memory_bytes - CONTEXT_BYTES - stage.weight_bytes
    if left_bytes <= 0:
        raise InsufficientMemoryError(
            f"layers {stage.layers} take {stage.weight_bytes} bytes of weights, {gpu.name} has "
            f"{memory_bytes} bytes of memory, of which CUDA takes {CONTEXT_BYTES}",
            weight_bytes=stage.weight_bytes,
            memory_bytes=memory_bytes,
        )
    if wanted_bytes is None:
        activations_bytes = activation_bytes(
            stage,
            max_num_batched_tokens=max_num_batched_tokens
            or default_num_batched_tokens(gpu.memory_bytes),
            max_num_seqs=max_num_seqs,
            context_tokens=longest_context(
                left_bytes, stage.kv_bytes_per_token, max_model_len or stage.model.max_model_len
            ),
            has_tensor_cores=gpu.capability.has_tensor_cores,
        )
        found_bytes = kv_bytes_left(left_bytes, activations_bytes)
        if not found_bytes:
            raise InsufficientMemoryError(
                f"{gpu.name} has {left_bytes} bytes left beside {stage.weight_bytes} bytes of "
                f"weights, of which a micro-batch takes {activations_bytes}; "
                f"{RESERVE_BYTES} are left alone",
                weight_bytes=stage.weight_bytes,
                memory_bytes=memory_bytes,
            )
        return found_bytes
    if wanted_bytes > left_bytes:
        raise InsufficientMemoryError(
            f"kv_memory asks for {wanted_bytes} bytes, {gpu.name} has {left_bytes} left beside "
            f"{stage.weight_bytes} bytes of weights",
            kv_bytes=wanted_bytes,
            available_bytes=left_bytes,
        )
    return wanted_bytes


def longest_context(free_bytes: int, kv_bytes_per_token: int, max_model_len: int) -> int:
    """Returns the tokens of the longest sequence that there can be, if KV took all that is free."""
    return max(1, min(max_model_len, free_bytes // kv_bytes_per_token))


def num_kv_blocks(stage: StageCost, kv_bytes: int, block_size: int) -> int:
    """Returns how many blocks of `block_size` tokens fit `kv_bytes`.

    Raises:
        InsufficientMemoryError: Not even one does.
    """
    block_bytes = stage.kv_bytes_per_token * block_size
    if kv_bytes < block_bytes:
        raise InsufficientMemoryError(
            f"{kv_bytes} bytes of KV memory do not hold one block of {block_size} tokens"
            f" ({block_bytes} bytes)",
            kv_bytes=kv_bytes,
            block_bytes=block_bytes,
        )
    return kv_bytes // block_bytes
