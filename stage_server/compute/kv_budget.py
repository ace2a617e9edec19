"""Decides how much memory a stage's KV takes, after the weights are loaded."""

from typing import NamedTuple

import psutil
import torch

from stage_server.compute.device_failures import device_failures
from stage_server.compute.memory_profile import StepSizes, activation_peak
from stage_server.core.config import StageConfig
from stage_server.model.layer_stack import LayerStack
from stagecoach.contract.errors import DeviceMemoryError, InsufficientMemoryError
from stagecoach.roofline.kv_memory import (
    CONTEXT_BYTES,
    RESERVE_BYTES,
    default_num_batched_tokens,
    kv_bytes_left,
    longest_context,
)

DEFAULT_CPU_KV_BYTES = 1 << 30
"""KV memory on the CPU when `--kv-memory` is not given."""


class KvBudget(NamedTuple):
    """What was decided, and what it follows from."""

    kv_bytes: int
    activation_bytes: int | None
    """That the largest micro-batches take; None where they were not run."""


def max_num_batched_tokens(config: StageConfig, device: torch.device) -> int:
    """Returns the most tokens of a micro-batch, as asked for or by the memory of the device."""
    if config.max_num_batched_tokens is not None:
        return config.max_num_batched_tokens
    memory_bytes = torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else None
    return default_num_batched_tokens(memory_bytes)


def kv_budget(
    config: StageConfig, stack: LayerStack, device_name: str, *, max_model_len: int
) -> KvBudget:
    """Decides on the bytes of the KV pool.

    On CUDA the largest micro-batches are run, unless the operator decided; that takes seconds.

    Args:
        config: The stage's configuration.
        stack: The stage's layers, loaded.
        device_name: Name of the device, for people.
        max_model_len: Tokens of the longest sequence.

    Raises:
        InsufficientMemoryError: What was asked for is not there, or nothing is left for KV.
    """
    if stack.device.type != "cuda":
        available = psutil.virtual_memory().available
        wanted = config.kv_memory_bytes or min(DEFAULT_CPU_KV_BYTES, available // 2)
        _check_available(wanted, available, device_name)
        return KvBudget(wanted, None)
    free = _free_bytes(config, stack.device)
    if config.kv_memory_bytes is not None:
        _check_available(config.kv_memory_bytes, free, device_name)
        return KvBudget(config.kv_memory_bytes, None)
    sizes = StepSizes(
        max_num_batched_tokens=max_num_batched_tokens(config, stack.device),
        max_num_seqs=config.max_num_seqs,
        context_tokens=longest_context(free, _kv_bytes_per_token(stack), max_model_len),
        block_size=config.kv_block_size,
    )
    try:
        with device_failures(stack.device):
            activations = activation_peak(stack, sizes)
    except DeviceMemoryError as error:
        raise InsufficientMemoryError(
            f"{device_name} has no memory beside the weights for a micro-batch of "
            f"{sizes.max_num_batched_tokens} tokens and {sizes.max_num_seqs} sequences; lower "
            "--max-num-batched-tokens, --max-num-seqs or --max-model-len, or give it fewer layers",
            max_num_batched_tokens=sizes.max_num_batched_tokens,
            max_num_seqs=sizes.max_num_seqs,
        ) from error
    torch.cuda.empty_cache()
    free = _free_bytes(config, stack.device)
    left = kv_bytes_left(free, activations)
    if not left:
        raise InsufficientMemoryError(
            f"{device_name} has {free} bytes free beside the weights, of which a micro-batch takes "
            f"{activations}; {RESERVE_BYTES} are left alone, and nothing is left for KV",
            available_bytes=free,
            activation_bytes=activations,
        )
    return KvBudget(left, activations)


def _kv_bytes_per_token(stack: LayerStack) -> int:
    config = stack.config
    rows = len(stack.layers) * config.num_kv_rows
    return rows * stack.precision.kv.head_bytes(config.head_dim)


def _free_bytes(config: StageConfig, device: torch.device) -> int:
    """What is free on the card, or in this stage's share of it."""
    free, total = torch.cuda.mem_get_info(device)
    if config.device_share == 1.0:
        return free
    own = torch.cuda.memory_reserved(device) + CONTEXT_BYTES
    return max(0, min(free, int(total * config.device_share) - own))


def _check_available(wanted: int, available: int, device_name: str) -> None:
    if wanted > available:
        raise InsufficientMemoryError(
            f"kv_memory asks for {wanted} bytes, {device_name} has {available} free",
            field="kv_memory",
            kv_bytes=wanted,
            available_bytes=available,
        )
