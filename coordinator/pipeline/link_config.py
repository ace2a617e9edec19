"""The deadlines of a link to a stage."""

from dataclasses import dataclass, field

from coordinator.pipeline.step_deadline import StepTimeouts


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkConfig:
    """Deadlines of a link, in seconds."""

    connect_timeout_s: float = 5.0
    """Time limit for GetInfo and for opening the stream, at first."""
    step: StepTimeouts = field(default_factory=StepTimeouts)
    """Deadlines of one micro-batch, counted from when those before it are answered."""
    keepalive_s: float = 5.0
    """A stage that is cut off is lost after twice as long. Connections on which nothing comes are
    pinged more often."""

    @property
    def keepalive_ms(self) -> int:
        """Time between pings in milliseconds, the unit of gRPC's options."""
        return int(1000 * self.keepalive_s)
