"""What the doors need of the process that serves the models."""

from typing import Protocol

from stagecoach.contract.cluster_status import CoordinatorStatus


class ProcessState(Protocol):
    """Whether the process serves, and its end. Called from one event loop only."""

    @property
    def is_ready(self) -> bool:
        """True while requests of some model are served."""
        ...

    async def wait_ready(self, *, ready: bool) -> None:
        """Returns when `is_ready` has become so."""
        ...

    async def status(self) -> CoordinatorStatus:
        """The state of the coordinator, of every model and of every stage."""
        ...

    async def close(self, grace_s: float) -> None:
        """Admits nothing more, lets requests finish within the grace time, fails the rest."""
        ...
