"""How much KV a GPU has room for beside the weights of its stage."""

from stagecoach.contract.errors import InsufficientMemoryError
from stagecoach.roofline.devices import Gpu
from stagecoach.roofline.stage_cost import StageCost

KV_BLOCK_SIZE = 16
"""Tokens in a block of KV, when nothing else is asked for."""

KV_SHARE = 0.9
"""Of the memory that weights leave, when nothing else is asked for; the rest is for activations,
the driver and fragmentation."""


def kv_memory_bytes(stage: StageCost, gpu: Gpu, wanted_bytes: int | None = None) -> int:
    """Returns the bytes of KV memory of a stage.

    Args:
        stage: The stage.
        gpu: Where it lives.
        wanted_bytes: What was asked for; None: `KV_SHARE` of what the weights leave.

    Raises:
        InsufficientMemoryError: Weights, or weights and the wanted KV, do not fit.
    """
    left_bytes = gpu.memory_bytes - stage.weight_bytes
    if left_bytes <= 0:
        raise InsufficientMemoryError(
            f"layers {stage.layers} take {stage.weight_bytes} bytes of weights, {gpu.name} has "
            f"{gpu.memory_bytes} bytes of memory",
            weight_bytes=stage.weight_bytes,
            memory_bytes=gpu.memory_bytes,
        )
    if wanted_bytes is None:
        return int(left_bytes * KV_SHARE)
    if wanted_bytes > left_bytes:
        raise InsufficientMemoryError(
            f"kv_memory asks for {wanted_bytes} bytes, {gpu.name} has {left_bytes} left beside "
            f"{stage.weight_bytes} bytes of weights",
            kv_bytes=wanted_bytes,
            available_bytes=left_bytes,
        )
    return wanted_bytes


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
