"""What the sampler needs of a form that the output must have."""

from typing import Protocol

import numpy as np
import numpy.typing as npt

from protos.errors import StagecoachError


class Constraint(Protocol):
    """Which tokens may follow those appended so far. Implemented by `coordinator.constraint`."""

    @property
    def allowed_ids(self) -> npt.NDArray[np.int64]:
        """Ids that may follow, rising; none once it is complete or broken."""
        ...

    @property
    def is_complete(self) -> bool:
        """True when the output is whole and nothing can follow."""
        ...

    @property
    def error(self) -> StagecoachError:
        """Why nothing is allowed although the output is not complete."""
        ...

    def append(self, token_id: int) -> None:
        """Takes an allowed token of output."""
        ...
