"""The device of this process, and in which formats a stage computes on it."""

import logging
import os

import torch

from stage_server.compute.cuda_cards import CPU, ChosenDevice, TorchCuda, choose_device
from stage_server.compute.nvidia_machine import NvidiaMachine
from stage_server.model.fbgemm_linear import has_fbgemm
from stage_server.model.linear_formats import row_forms
from stagecoach.contract.precision import FEW_BITS, DType, Encoding, KvFormat, Precision
from stagecoach.model_files.config import ModelConfig
from stagecoach.roofline.card_precision import AUTO, card_precision

_log = logging.getLogger(__name__)


def take_device(asked: str) -> ChosenDevice:
    """Chooses the device and makes it that of the calling thread, which is to compute.

    Sums are kept in float32 from then on, also where matrices of 16 bits are split for a sum.

    Args:
        asked: As `StageConfig.device`.

    Raises:
        IncompatibleError: As `choose_device`.
    """
    chosen = CPU if asked == "cpu" else _choose(asked)
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    if chosen.card is not None:
        # Else what names no index, such as Triton and pinned memory, takes memory of cuda:0.
        torch.cuda.set_device(chosen.name)
    return chosen


def _choose(asked: str) -> ChosenDevice:
    return choose_device(asked, TorchCuda.of_this_process(), NvidiaMachine.look(), os.environ)


def precision_on(
    device: ChosenDevice,
    dtype: str,
    config: ModelConfig,
    *,
    weights: str = AUTO,
    own: Encoding | None = None,
    kv_dtype: str = AUTO,
) -> Precision:
    """Returns the formats in which a stage keeps, computes and sends numbers.

    Args:
        device: Where it computes.
        dtype: As `StageConfig.dtype`; of the arithmetic, auto is float32 on the CPU, and see
            `card_precision`.
        config: The model.
        weights: As `StageConfig.weights`.
        own: In which few bits the files keep most matrices; None: in none.
        kv_dtype: As `StageConfig.kv_dtype`.

    Raises:
        IncompatibleError: The card or the family of the model cannot do with this dtype.
    """
    precision = _without_kv(device, dtype, config, weights=weights, own=own)
    return precision if kv_dtype == AUTO else precision._replace(kv=KvFormat.named(kv_dtype))


def _without_kv(
    device: ChosenDevice, dtype: str, config: ModelConfig, *, weights: str, own: Encoding | None
) -> Precision:
    """What a stage keeps, computes and sends; KV has the dtype of the arithmetic."""
    if weights in FEW_BITS:
        return _of_dtype(device, dtype, config)._replace(weights=FEW_BITS[weights])
    if weights != AUTO:
        precision = _of_dtype(device, weights if dtype == AUTO else dtype, config)
        return precision._replace(weights=Encoding.plain(DType.named(weights)))
    if dtype == AUTO and (device.card is None or own is not None):
        return _kept(own, device, config)
    return _of_dtype(device, dtype, config)


def _of_dtype(device: ChosenDevice, dtype: str, config: ModelConfig) -> Precision:
    if device.card is None:
        return Precision.of(DType.FLOAT32 if dtype == AUTO else dtype, on_cpu=True)
    card = device.card
    return card_precision(dtype, config, card=card.name, capability=card.capability)


def _kept(own: Encoding | None, device: ChosenDevice, config: ModelConfig) -> Precision:
    """Weights as the files have them; if those are plain, or it is impossible, in 16 bits."""
    if device.card is None:
        plain = Precision.of(DType.FLOAT16 if has_fbgemm() else DType.FLOAT32, on_cpu=True)
    else:
        plain = _of_dtype(device, AUTO, config)
    if own is None:
        return plain
    forms = row_forms(plain.compute, torch.device(device.name))
    failure = "there is no form for them" if forms is None else forms.failure
    if failure is None:
        return plain._replace(weights=own)
    _log.warning(
        "weights of the files are not kept in their bits",
        extra={"file": own.name, "kept": plain.weights.name, "reason": failure},
    )
    return plain
