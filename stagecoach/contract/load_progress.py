"""How far a stage is on its way to serving. Standard library only."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

_GB = 1e9
_MB = 1e6


class LoadPhase(StrEnum):
    """What a stage does before it serves; in this order, some may be missing."""

    STARTING = "starting"
    DOWNLOADING = "downloading"
    LOADING = "loading"
    WARMING_UP = "warming up"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadProgress:
    """How far a phase is."""

    phase: LoadPhase
    done_bytes: int = 0
    total_bytes: int | None = None
    """Bytes of the whole phase; None for a phase that is not measured in bytes."""

    @property
    def share(self) -> float | None:
        """Part [0, 1] of the phase that is done; None where that is not known."""
        if not self.total_bytes:
            return None
        return min(self.done_bytes / self.total_bytes, 1.0)

    def __str__(self) -> str:
        """Words for people, such as `loading 3.1 of 8.6 GB (36 %)`."""
        if self.total_bytes is None or self.share is None:
            return str(self.phase)
        unit, name = (_GB, "GB") if self.total_bytes >= _GB else (_MB, "MB")
        return (
            f"{self.phase} {self.done_bytes / unit:.1f} of {self.total_bytes / unit:.1f} {name} "
            f"({100 * self.share:.0f} %)"
        )

    def to_details(self) -> dict[str, object]:
        """Writes the progress as the details of an error, or as the fields of a JSON object."""
        details: dict[str, object] = {"phase": str(self.phase), "done_bytes": self.done_bytes}
        return details if self.total_bytes is None else {**details, "total_bytes": self.total_bytes}

    @classmethod
    def from_details(cls, details: Mapping[str, object]) -> Self | None:
        """Reads what `to_details` wrote, also as strings; None for anything else."""
        total = details.get("total_bytes")
        try:
            return cls(
                phase=LoadPhase(str(details["phase"])),
                done_bytes=int(str(details["done_bytes"])),
                total_bytes=None if total is None else int(str(total)),
            )
        except (KeyError, ValueError):
            return None
