"""The typed errors of Stagecoach: what can go wrong for a caller, a peer or an operator.

Every layer raises these and no other layer's exceptions cross a module boundary.
`stagecoach.contract.status` maps them to gRPC statuses and back, so that a client gets the class
the server raised. Needs only the standard library.
"""

from typing import ClassVar

from stagecoach.contract.load_progress import LoadProgress


class StagecoachError(Exception):
    """Base of all typed errors.

    Args:
        message: One line for people, with the field and the numbers. No secrets, prompts or paths
            of a machine other than the reader's.
        **details: The same facts for programs; values are sent as strings.
    """

    reason: ClassVar[str] = "INTERNAL"
    """Stable identifier on the wire; unique to the class."""

    def __init__(self, message: str, **details: object) -> None:
        super().__init__(message)
        self.message = message
        self.details: dict[str, str] = {name: str(value) for name, value in details.items()}


class InvalidArgumentError(StagecoachError):
    """A malformed or out-of-range parameter, or an unknown or unsupported field."""

    reason = "INVALID_ARGUMENT"

    def __init__(self, message: str, *, field: str = "", **details: object) -> None:
        super().__init__(message, field=field, **details)

    @property
    def field(self) -> str:
        """The offending field, or an empty string."""
        return self.details["field"]


class ModelNotFoundError(InvalidArgumentError):
    """The request names a model that is not served."""

    reason = "MODEL_NOT_FOUND"


class ContextLengthExceededError(StagecoachError):
    """Prompt and output together exceed what the model or the KV memory can hold."""

    reason = "CONTEXT_LENGTH_EXCEEDED"


class QueueFullError(StagecoachError):
    """The waiting queue is full; try again later."""

    reason = "QUEUE_FULL"


class KvFullError(StagecoachError):
    """A stage has no free KV blocks for a micro-batch."""

    reason = "KV_FULL"


class DeviceMemoryError(StagecoachError):
    """A stage's device has no memory for the activations of a micro-batch; a smaller one may fit.

    The content of the KV slots of the micro-batch is undefined.
    """

    reason = "DEVICE_MEMORY"


class UnavailableError(StagecoachError):
    """A stage or the coordinator cannot be reached, is loading, or is draining."""

    reason = "UNAVAILABLE"


class LoadingError(UnavailableError):
    """A stage is on its way to serving.

    Args:
        message: One line for people.
        progress: How far it is; travels in the details.
        **details: Further facts for programs.
    """

    reason = "LOADING"

    def __init__(
        self, message: str, *, progress: LoadProgress | None = None, **details: object
    ) -> None:
        facts = {} if progress is None else progress.to_details()
        super().__init__(message, **facts, **details)

    @property
    def progress(self) -> LoadProgress | None:
        """How far it is; None when it does not say."""
        return LoadProgress.from_details(self.details)


def draining_error() -> UnavailableError:
    """What a stage that is told to stop says, so that nobody takes it for a crash."""
    return UnavailableError("the stage is draining", draining=True)


def is_draining(error: StagecoachError) -> bool:
    """True for what `draining_error` made, on either side of the wire."""
    return error.details.get("draining") == str(True)


class StaleStateError(StagecoachError):
    """A position gap, a stale epoch or an unknown slot: the sender must replay."""

    reason = "STALE_STATE"


class IncompatibleError(StagecoachError):
    """Model, layers, dtype or version do not fit together; an operator must act."""

    reason = "INCOMPATIBLE"


class UnsupportedModelError(IncompatibleError):
    """The model's family, layout or file format is not supported."""

    reason = "UNSUPPORTED_MODEL"


class ModelFilesError(IncompatibleError):
    """Model files are missing, truncated or contradict each other."""

    reason = "MODEL_FILES"


class InsufficientMemoryError(IncompatibleError):
    """Weights or KV memory do not fit the device."""

    reason = "INSUFFICIENT_MEMORY"


class DeadlineExceededError(StagecoachError):
    """A deadline passed."""

    reason = "DEADLINE_EXCEEDED"


class UnauthenticatedError(StagecoachError):
    """A missing or wrong credential."""

    reason = "UNAUTHENTICATED"


class RequestAbortedError(StagecoachError):
    """The request was cancelled by its client or an operator."""

    reason = "ABORTED_BY_CALLER"


class InternalError(StagecoachError):
    """A bug of ours. The message holds nothing that the server would not show a stranger."""

    reason = "INTERNAL"
