"""Which form the matrices of a stage have."""

import torch

from stage_server.model.dense_linear import DenseFormat
from stage_server.model.fbgemm_linear import FbgemmFormat
from stage_server.model.grouped_linear import GroupedFormat
from stage_server.model.linear_format import LinearFormat
from stagecoach.contract.errors import InvalidArgumentError
from stagecoach.contract.precision import Encoding, Precision


def linear_format(
    precision: Precision, device: torch.device, *, own: Encoding | None = None
) -> LinearFormat:
    """Returns the form that matrices have in a precision on a device.

    Args:
        precision: The formats of the stage's numbers.
        device: Where it computes.
        own: In which few bits the files keep most matrices; None: in none.

    Raises:
        InvalidArgumentError: There is none, or it needs what this build of torch lacks.
    """
    found = (
        DenseFormat.of(precision, device)
        or FbgemmFormat.of(precision, device)
        or GroupedFormat.of(precision, device, keeps_own=own == precision.weights)
    )
    if found is not None:
        return found
    raise InvalidArgumentError(
        f"weights in {precision.weights.name} cannot be computed in {precision.compute} on "
        f"{device.type}",
        field="weights",
    )
