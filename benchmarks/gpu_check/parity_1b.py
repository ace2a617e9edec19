"""The check of a model of 1.1 B, a Llama with random weights, in each dtype, against transformers.

What is expected is computed in float32 on the same device, as it would take a CPU too long.
"""

from collections.abc import Iterator, Sequence

from benchmarks.gpu_check.logit_errors import kernels_figure, parity_of, reference_of
from benchmarks.gpu_check.models import large_model
from benchmarks.gpu_check.report import Figure
from benchmarks.gpu_check.stage_runs import random_sequences
from benchmarks.gpu_check.subject import Subject
from stagecoach.contract.precision import DType
from stagecoach.model_files import open_model

_LENGTHS = (400, 120, 40)
_KERNELS = "1.1 B, dtypes that run by kernels"


def names(subject: Subject) -> Sequence[str]:
    """Names the rows."""
    return [*(_name(dtype) for dtype in _dtypes(subject)), _KERNELS]


def figures(subject: Subject) -> Iterator[Figure]:
    """Compares one dtype after another."""
    path = large_model(subject)
    sequences = random_sequences(_LENGTHS, open_model(str(path)).config.vocab_size)
    reference = reference_of(
        path,
        sequences,
        _dtypes(subject),
        float32_device=subject.device,
        device=subject.device,
    )
    parities = []
    for dtype in _dtypes(subject):
        parity = parity_of(subject, path, sequences, dtype, reference, name=_name(dtype))
        parities.append(parity)
        yield parity.figure
    yield kernels_figure(_KERNELS, parities)


def _name(dtype: DType) -> str:
    return f"1.1 B, {dtype}"


def _dtypes(subject: Subject) -> list[DType]:
    config = open_model("shape:llama-1b").config
    return [dtype for dtype in DType if subject.has(dtype, config)]
