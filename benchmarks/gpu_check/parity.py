"""The check of every family: a tiny model of each, in each dtype, against transformers.

What is expected is computed in float32 on the CPU, so that no kernel of the card has a part in it.
"""

from collections.abc import Iterator, Sequence

import torch

from benchmarks.gpu_check.logit_errors import kernels_figure, parity_of, reference_of
from benchmarks.gpu_check.report import Figure
from benchmarks.gpu_check.stage_runs import random_sequences
from benchmarks.gpu_check.subject import Subject
from stagecoach.contract.precision import DType
from stagecoach.model_files import open_model
from tests.tiny_files import tiny_files
from tests.tiny_models import FAMILIES, VOCAB_SIZE, tiny_model

_QUICK_CASES = ("llama-gqa-tied", "gemma2")

_LENGTHS = (200, 33, 20)
"""Of the sequences; the first is longer than a part of a decode that is split."""

_KERNELS = "tiny models that run by kernels"

_CPU = torch.device("cpu")


def names(subject: Subject) -> Sequence[str]:
    """Names the rows."""
    models = [f"{case} {dtype}" for case in _cases(subject) for dtype in _dtypes(subject, case)]
    return [*models, _KERNELS]


def figures(subject: Subject) -> Iterator[Figure]:
    """Compares one family after another."""
    parities = []
    for case in _cases(subject):
        path = tiny_model(case, subject.folder)
        longest = min(_LENGTHS[0], open_model(str(path)).config.max_model_len)
        sequences = random_sequences([longest, *_LENGTHS[1:]], VOCAB_SIZE)
        dtypes = _dtypes(subject, case)
        reference = reference_of(
            path, sequences, dtypes, float32_device=_CPU, device=subject.device
        )
        for dtype in dtypes:
            parity = parity_of(
                subject,
                path,
                sequences,
                dtype,
                reference,
                name=f"{case} {dtype}",
                group=f"tiny models, {dtype}",
            )
            parities.append(parity)
            yield parity.figure
    yield kernels_figure(_KERNELS, parities)


def _cases(subject: Subject) -> Sequence[str]:
    return _QUICK_CASES if subject.is_quick else tuple(FAMILIES)


def _dtypes(subject: Subject, case: str) -> list[DType]:
    """Those that the stage takes for the family on this device."""
    config = tiny_files(case).config
    return [dtype for dtype in DType if subject.has(dtype, config)]
