"""Which form the matrices of a stage have."""

from collections.abc import Callable

import torch

from stage_server.model.dense_linear import DenseFormat
from stage_server.model.fbgemm_linear import FbgemmFormat
from stage_server.model.linear_format import LinearFormat
from stagecoach.contract.errors import InvalidArgumentError
from stagecoach.contract.precision import Precision

_FORMATS: tuple[Callable[[Precision, torch.device], LinearFormat | None], ...] = (
    DenseFormat.of,
    FbgemmFormat.of,
)
"""Each returns None for what is another's."""


def linear_format(precision: Precision, device: torch.device) -> LinearFormat:
    """Returns the form that matrices have in a precision on a device.

    Raises:
        InvalidArgumentError: There is none, or it needs what this build of torch lacks.
    """
    for format_of in _FORMATS:
        found = format_of(precision, device)
        if found is not None:
            return found
    raise InvalidArgumentError(
        f"weights in {precision.weights.name} cannot be computed in {precision.compute} on "
        f"{device.type}",
        field="dtype",
    )
