"""What a display shows."""

from typing import NamedTuple

from stagecoach.contract.load_progress import LoadProgress


class Entry(NamedTuple):
    """What there is to say about one stage."""

    text: str
    """State of the load, in words."""
    share: float | None = None
    """Part [0, 1] of the bytes that is done, where there are any."""
    is_done: bool = False

    @classmethod
    def of(cls, progress: LoadProgress) -> "Entry":
        """An entry for a stage that loads."""
        return cls(str(progress), progress.share)
