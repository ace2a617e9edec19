"""What the sampler needs of a form that the output must have."""

from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt

from stagecoach.contract.errors import StagecoachError


class Constraint(Protocol):
    """Which tokens may follow those appended so far. Implemented by `coordinator.constraint`."""

    @property
    def is_ready(self) -> bool:
        """True when it is known what may follow; else nothing but `append` may be called."""
        ...

    def when_ready(self, on_ready: Callable[[], None]) -> None:
        """Calls back each time that it has become ready, until it is closed."""
        ...

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

    def close(self) -> None:
        """Gives up what it holds. May be called again."""
        ...
