"""How far the logits of a stage are from those of transformers in float32."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForCausalLM

from benchmarks.gpu_check.report import Figure, Limit
from benchmarks.gpu_check.stage_runs import forced_logits, load_engine, release
from benchmarks.gpu_check.subject import Subject
from stage_server.core.torch_dtypes import torch_dtype
from stagecoach.contract.precision import DType

_KV_BYTES = 64 << 20

_MOST_FLOAT32 = 1e-4
"""Share of the logits' norm by which a stage may differ in float32, where both only round: sums in
another order come to 1e-6, and what is computed wrongly to more than 1e-2."""

_MOST_OF_TRANSFORMERS = 1.5
"""In 16 bits, a stage may err by so many times the error of transformers in the same dtype on the
same device. Both round equally often at other places: on a CPU in bfloat16, the error of a stage is
0.85 to 1.05 times the other."""


class Reference(NamedTuple):
    """What transformers computes of some sequences."""

    float32: torch.Tensor
    """`[num_tokens, vocab_size]`, on the CPU."""
    errors: Mapping[DType, float]
    """Of its own logits in other dtypes, as `relative_error`."""


def reference_of(
    path: Path,
    sequences: Sequence[Sequence[int]],
    dtypes: Sequence[DType],
    *,
    float32_device: torch.device,
    device: torch.device,
) -> Reference:
    """Runs the whole model in transformers, each sequence at once.

    Args:
        path: Folder of the model.
        sequences: Token ids.
        dtypes: Those whose errors are wanted.
        float32_device: Where the model is computed in float32.
        device: Where it is computed in the other dtypes.
    """
    float32 = _transformers_logits(path, sequences, DType.FLOAT32, float32_device)
    errors: dict[DType, float] = {
        dtype: relative_error(_transformers_logits(path, sequences, dtype, device), float32)
        for dtype in dtypes
        if dtype is not DType.FLOAT32
    }
    return Reference(float32, errors)


class Parity(NamedTuple):
    """Of a stage and transformers."""

    figure: Figure
    has_kernels: bool
    """Whether the stage's attention ran by kernels."""


def parity_of(
    subject: Subject,
    path: Path,
    sequences: Sequence[Sequence[int]],
    dtype: DType,
    reference: Reference,
    *,
    name: str,
    group: str = "",
) -> Parity:
    """Compares a stage that has the whole model with transformers.

    Args:
        subject: Has the device.
        path: Folder of the model.
        sequences: Those of the reference.
        dtype: Of the stage.
        reference: What transformers computes.
        name: Of the figure.
        group: Likewise.
    """
    engine = load_engine(subject, path, dtype, kv_memory_bytes=_KV_BYTES)
    attention = engine.info.attention
    error = relative_error(forced_logits(engine, sequences), reference.float32)
    del engine
    release(subject.device)
    if dtype is DType.FLOAT32:
        limit = Limit(most=_MOST_FLOAT32)
        figure = Figure(name, error, "of the norm", limit, attention, group)
        return Parity(figure, attention == "kernel")
    theirs = reference.errors[dtype]
    note = f"{error:.2g} of the norm, transformers {theirs:.2g}; {attention}"
    limit = Limit(most=_MOST_OF_TRANSFORMERS)
    figure = Figure(name, error / theirs, "x transformers' error", limit, note, group)
    return Parity(figure, attention == "kernel")


def kernels_figure(name: str, parities: Sequence[Parity]) -> Figure:
    """Counts the comparisons in which a stage ran by kernels; on a card all should."""
    without = [each.figure.name for each in parities if not each.has_kernels]
    note = f"not {', '.join(without)}" if without else ""
    return Figure(
        name,
        len(parities) - len(without),
        f"of {len(parities)}",
        Limit(least=len(parities)),
        note,
        is_of_cards=True,
    )


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference, as a share of the norm of what was expected."""
    return float((found - expected).norm() / expected.norm())


@torch.inference_mode()
def _transformers_logits(
    path: Path, sequences: Sequence[Sequence[int]], dtype: DType, device: torch.device
) -> torch.Tensor:
    model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch_dtype(dtype))
    model.eval().to(device)
    rows = [
        model(torch.tensor([list(sequence)], device=device)).logits[0].float().cpu()
        for sequence in sequences
    ]
    del model
    release(device)
    return torch.cat(rows)
