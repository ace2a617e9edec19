"""Domain error <-> gRPC status; the sole owner of that mapping.

An error travels as `google.rpc.Status` with one `google.rpc.ErrorInfo` that holds the class's
`reason` and its details, so the class on the other side is the same. The same message serves
in-band (one micro-batch failed) and as the status of a call.
"""

from collections.abc import Iterable
from typing import cast

from google.protobuf.any_pb2 import Any
from google.protobuf.message import DecodeError
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc import RpcError, StatusCode

from stagecoach.contract import errors

_DOMAIN = "stagecoach"

# Where gRPC carries a google.rpc.Status beside the code and message of a call.
_METADATA_KEY = "grpc-status-details-bin"

_CODES: dict[type[errors.StagecoachError], int] = {
    errors.InvalidArgumentError: code_pb2.INVALID_ARGUMENT,
    errors.ModelNotFoundError: code_pb2.NOT_FOUND,
    errors.ContextLengthExceededError: code_pb2.OUT_OF_RANGE,
    errors.QueueFullError: code_pb2.RESOURCE_EXHAUSTED,
    errors.KvFullError: code_pb2.RESOURCE_EXHAUSTED,
    errors.DeviceMemoryError: code_pb2.INTERNAL,
    errors.UnavailableError: code_pb2.UNAVAILABLE,
    errors.LoadingError: code_pb2.UNAVAILABLE,
    errors.StaleStateError: code_pb2.ABORTED,
    errors.IncompatibleError: code_pb2.FAILED_PRECONDITION,
    errors.UnsupportedModelError: code_pb2.FAILED_PRECONDITION,
    errors.ModelFilesError: code_pb2.FAILED_PRECONDITION,
    errors.InsufficientMemoryError: code_pb2.FAILED_PRECONDITION,
    errors.DeadlineExceededError: code_pb2.DEADLINE_EXCEEDED,
    errors.UnauthenticatedError: code_pb2.UNAUTHENTICATED,
    errors.RequestAbortedError: code_pb2.CANCELLED,
    errors.InternalError: code_pb2.INTERNAL,
}

_BY_REASON = {error_type.reason: error_type for error_type in _CODES}

# What a bare gRPC status means when the peer, a proxy or gRPC itself sent no ErrorInfo.
_BY_CODE: dict[int, type[errors.StagecoachError]] = {
    code_pb2.INVALID_ARGUMENT: errors.InvalidArgumentError,
    code_pb2.OUT_OF_RANGE: errors.InvalidArgumentError,
    code_pb2.RESOURCE_EXHAUSTED: errors.InvalidArgumentError,
    code_pb2.UNAVAILABLE: errors.UnavailableError,
    code_pb2.ABORTED: errors.StaleStateError,
    code_pb2.FAILED_PRECONDITION: errors.IncompatibleError,
    code_pb2.UNIMPLEMENTED: errors.IncompatibleError,
    code_pb2.DEADLINE_EXCEEDED: errors.DeadlineExceededError,
    code_pb2.UNAUTHENTICATED: errors.UnauthenticatedError,
    code_pb2.PERMISSION_DENIED: errors.UnauthenticatedError,
    code_pb2.CANCELLED: errors.RequestAbortedError,
}

# What a server of gRPC says, in a bare RESOURCE_EXHAUSTED, to calls above maximum_concurrent_rpcs.
_TOO_MANY_CALLS = "Concurrent RPC limit"

LOST_STATUS = "Internal error from Core"
"""What grpc.aio says of a call that its peer ended while a message was written to it, instead of
what the peer said."""

# gRPC refuses trailing metadata above 8 to 16 KiB, and the peer would see neither error nor code.
# The text travels twice, once with each byte as up to three characters.
_MAX_MESSAGE_BYTES = 1000
_MAX_DETAIL_BYTES = 200

_GRPC_CODES = {code.value[0]: code for code in StatusCode}


def to_status(error: errors.StagecoachError) -> status_pb2.Status:
    """Writes an error as `google.rpc.Status`; text that quotes too much of a peer is cut off."""
    details = {name: _cut(value, _MAX_DETAIL_BYTES) for name, value in error.details.items()}
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=_DOMAIN, metadata=details)
    detail = Any()
    detail.Pack(info)
    message = _cut(error.message, _MAX_MESSAGE_BYTES)
    return status_pb2.Status(code=_CODES[type(error)], message=message, details=[detail])


def from_status(status: status_pb2.Status) -> errors.StagecoachError:
    """Reads the error that `to_status` wrote; a foreign status becomes the nearest class."""
    info = error_details_pb2.ErrorInfo()
    for detail in status.details:
        if _unpack(detail, info) and info.domain == _DOMAIN and info.reason in _BY_REASON:
            error = _BY_REASON[info.reason](status.message)
            error.details.update(info.metadata)
            return error
    return _BY_CODE.get(status.code, errors.InternalError)(status.message)


def trailing_metadata(
    error: errors.StagecoachError,
) -> tuple[StatusCode, str, tuple[tuple[str, bytes], ...]]:
    """Writes an error as the code, message and trailing metadata that `grpc.aio` aborts with."""
    status = to_status(error)
    metadata = ((_METADATA_KEY, status.SerializeToString()),)
    return _GRPC_CODES[status.code], status.message, metadata


def from_rpc_error(error: RpcError) -> errors.StagecoachError:
    """Reads the error that a call raised, on the caller's side; of `grpc` and of `grpc.aio`."""
    # Pairs in both packages; the type stubs know only the attributes that `grpc` adds to them.
    metadata = cast("Iterable[tuple[str, str | bytes]] | None", error.trailing_metadata())
    return from_ending(error.code(), error.details(), metadata)


def from_ending(
    code: StatusCode,
    message: str | None,
    trailing_metadata: Iterable[tuple[str, str | bytes]] | None,
) -> errors.StagecoachError:
    """Reads the error that a call ended with, on the caller's side.

    The call's own code decides: a `google.rpc.Status` that is not readable or says something else
    is ignored. An ending that was lost is UNAVAILABLE: the next call hears the reason.
    """
    for key, value in trailing_metadata or ():
        if key == _METADATA_KEY and isinstance(value, bytes):
            status = _parse(value)
            if status is not None and status.code == code.value[0]:
                return from_status(status)
    message = message or f"the call ended with {code.name} and no message"
    if code is StatusCode.RESOURCE_EXHAUSTED and message.startswith(_TOO_MANY_CALLS):
        return errors.QueueFullError(message)
    if code is StatusCode.INTERNAL and message == LOST_STATUS:
        return errors.UnavailableError("the call was ended while it was written to")
    return from_status(status_pb2.Status(code=code.value[0], message=message))


def _cut(text: str, num_bytes: int) -> str:
    """The text, or as much of its beginning as fits, with a mark that says so."""
    data = text.encode(errors="replace")
    if len(data) <= num_bytes:
        return text
    return f"{data[: num_bytes - 4].decode(errors='ignore')} ..."


def _parse(data: bytes) -> status_pb2.Status | None:
    try:
        return status_pb2.Status.FromString(data)
    except DecodeError:
        return None


def _unpack(detail: Any, info: error_details_pb2.ErrorInfo) -> bool:
    try:
        return detail.Unpack(info)
    except DecodeError:
        return False
