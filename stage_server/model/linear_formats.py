"""Which form the matrices of a stage have."""

from functools import cache

import torch

from stage_server.model.cpu_grouped_rows import CpuRows
from stage_server.model.cuda_grouped_rows import CudaRows
from stage_server.model.dense_linear import DenseFormat
from stage_server.model.fbgemm_linear import FbgemmFormat
from stage_server.model.grouped_linear import GroupedFormat, RowForms
from stage_server.model.linear_format import LinearFormat
from stagecoach.contract.errors import InvalidArgumentError
from stagecoach.contract.precision import DType, Precision


@cache
def row_forms(compute: DType, device: torch.device) -> RowForms | None:
    """Returns the forms that a device has for rows in few bits; None: it has none in that dtype.

    The same ones each time: they remember whether the device multiplies such rows.
    """
    if device.type == "cuda":
        return CudaRows(compute, device)
    return CpuRows() if compute is DType.FLOAT32 else None


def linear_format(
    precision: Precision, device: torch.device, *, keeps_own: bool = False
) -> LinearFormat:
    """Returns the form that matrices have in a precision on a device.

    Args:
        precision: The formats of the stage's numbers.
        device: Where it computes.
        keeps_own: The files have weights in these few bits: keep also what they have in others.

    Raises:
        InvalidArgumentError: There is none, or it needs what this build of torch lacks.
    """
    forms = row_forms(precision.compute, device)
    found = (
        DenseFormat.of(precision, device)
        or FbgemmFormat.of(precision, device)
        or GroupedFormat.of(precision.weights, forms, keeps_own=keeps_own)
    )
    if found is not None:
        return found
    raise InvalidArgumentError(
        f"weights in {precision.weights.name} cannot be computed in {precision.compute} on "
        f"{device.type}",
        field="weights",
    )
