"""Repeated measurements of one thing."""

from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True, kw_only=True)
class Runs:
    """Tokens a second of one system, one figure a run."""

    rates: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle run."""
        return median(self.rates)

    def __str__(self) -> str:
        """Median and spread."""
        return f"{self.median:.1f} ({min(self.rates):.1f} to {max(self.rates):.1f})"
