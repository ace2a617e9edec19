import asyncio

import grpc
import pytest
from google.protobuf.any_pb2 import Any
from google.rpc import code_pb2, error_details_pb2, status_pb2

from stagecoach.contract import errors, status

MAPPED = [
    value
    for value in vars(errors).values()
    if isinstance(value, type)
    and issubclass(value, errors.StagecoachError)
    and value is not errors.StagecoachError
]


class CallEnded(grpc.RpcError):
    """What gRPC raises: a code, a message and trailing metadata."""

    def __init__(
        self, code: grpc.StatusCode, message: str | None, metadata: tuple[object, ...] | None = ()
    ) -> None:
        self._code, self._message, self._metadata = code, message, metadata

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str | None:
        return self._message

    def trailing_metadata(self) -> tuple[object, ...] | None:  # type: ignore[override]
        return self._metadata


def carried(error: errors.StagecoachError) -> errors.StagecoachError:
    """Sends an error as the end of a call and reads it on the other side."""
    return status.from_rpc_error(CallEnded(*status.trailing_metadata(error)))


@pytest.mark.parametrize("error_type", MAPPED)
def test_every_class_survives_in_band(error_type: type[errors.StagecoachError]) -> None:
    sent = error_type("slot 7 holds 3 tokens", kv_slot=7, num_tokens=3)
    message = status_pb2.Status.FromString(status.to_status(sent).SerializeToString())
    received = status.from_status(message)
    assert type(received) is error_type
    assert received.message == str(received) == "slot 7 holds 3 tokens"
    assert received.details == sent.details
    assert received.details.items() >= {"kv_slot": "7", "num_tokens": "3"}.items()


@pytest.mark.parametrize("error_type", MAPPED)
def test_every_class_survives_as_the_end_of_a_call(
    error_type: type[errors.StagecoachError],
) -> None:
    received = carried(error_type("no room", num_blocks=4))
    assert type(received) is error_type
    assert received.message == "no room"
    assert received.details["num_blocks"] == "4"


@pytest.mark.parametrize("letter", ["x", "\n", "\N{SNOWMAN}", "\N{GRINNING FACE}"])
def test_an_error_that_quotes_too_much_is_cut_to_what_grpc_carries(letter: str) -> None:
    sent = errors.IncompatibleError(letter * 1_000_000, expected=letter * 1_000_000)
    code, message, ((_, details),) = status.trailing_metadata(sent)
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert 3 * len(message.encode()) + 4 * len(details) / 3 < 8192  # gRPC's soft limit
    received = carried(sent)
    assert type(received) is errors.IncompatibleError
    assert received.message == message
    assert message.startswith(letter * 200)
    assert message.endswith(" ...")


def test_an_error_of_the_longest_length_is_whole() -> None:
    assert carried(errors.StaleStateError("x" * 1000)).message == "x" * 1000


def test_an_ending_that_grpc_lost_is_worth_another_call() -> None:
    lost = CallEnded(grpc.StatusCode.INTERNAL, status.LOST_STATUS)
    assert type(status.from_rpc_error(lost)) is errors.UnavailableError
    bug = CallEnded(grpc.StatusCode.INTERNAL, "another")
    assert type(status.from_rpc_error(bug)) is errors.InternalError


def test_the_offending_field_survives() -> None:
    received = carried(errors.InvalidArgumentError("top_p is 2, must be in (0, 1]", field="top_p"))
    assert isinstance(received, errors.InvalidArgumentError)
    assert received.field == "top_p"


def test_reasons_are_unique() -> None:
    assert len({error_type.reason for error_type in MAPPED}) == len(MAPPED)


@pytest.mark.parametrize(
    ("error_type", "code"),
    [
        (errors.InvalidArgumentError, grpc.StatusCode.INVALID_ARGUMENT),
        (errors.ModelNotFoundError, grpc.StatusCode.NOT_FOUND),
        (errors.ContextLengthExceededError, grpc.StatusCode.OUT_OF_RANGE),
        (errors.QueueFullError, grpc.StatusCode.RESOURCE_EXHAUSTED),
        (errors.KvFullError, grpc.StatusCode.RESOURCE_EXHAUSTED),
        (errors.UnavailableError, grpc.StatusCode.UNAVAILABLE),
        (errors.StaleStateError, grpc.StatusCode.ABORTED),
        (errors.IncompatibleError, grpc.StatusCode.FAILED_PRECONDITION),
        (errors.UnsupportedModelError, grpc.StatusCode.FAILED_PRECONDITION),
        (errors.ModelFilesError, grpc.StatusCode.FAILED_PRECONDITION),
        (errors.InsufficientMemoryError, grpc.StatusCode.FAILED_PRECONDITION),
        (errors.DeadlineExceededError, grpc.StatusCode.DEADLINE_EXCEEDED),
        (errors.UnauthenticatedError, grpc.StatusCode.UNAUTHENTICATED),
        (errors.RequestAbortedError, grpc.StatusCode.CANCELLED),
        (errors.InternalError, grpc.StatusCode.INTERNAL),
    ],
)
def test_the_code_of_each_class_is_part_of_the_contract(
    error_type: type[errors.StagecoachError], code: grpc.StatusCode
) -> None:
    assert status.trailing_metadata(error_type("x"))[0] is code


@pytest.mark.parametrize(
    ("code", "error_type"),
    [
        (grpc.StatusCode.UNAVAILABLE, errors.UnavailableError),
        (grpc.StatusCode.DEADLINE_EXCEEDED, errors.DeadlineExceededError),
        (grpc.StatusCode.CANCELLED, errors.RequestAbortedError),
        (grpc.StatusCode.UNIMPLEMENTED, errors.IncompatibleError),
        (grpc.StatusCode.PERMISSION_DENIED, errors.UnauthenticatedError),
        # gRPC's own answer to a message over the size limit.
        (grpc.StatusCode.RESOURCE_EXHAUSTED, errors.InvalidArgumentError),
        (grpc.StatusCode.UNKNOWN, errors.InternalError),
        (grpc.StatusCode.DATA_LOSS, errors.InternalError),
    ],
)
def test_a_bare_status_becomes_the_nearest_class(
    code: grpc.StatusCode, error_type: type[errors.StagecoachError]
) -> None:
    received = status.from_rpc_error(CallEnded(code, "said gRPC", None))
    assert type(received) is error_type
    assert received.message == "said gRPC"


def test_a_status_without_a_message_still_says_something() -> None:
    received = status.from_rpc_error(CallEnded(grpc.StatusCode.UNAVAILABLE, None))
    assert "UNAVAILABLE" in received.message


def test_details_of_another_domain_are_ignored() -> None:
    detail = Any()
    detail.Pack(error_details_pb2.ErrorInfo(reason="QUEUE_FULL", domain="elsewhere.example"))
    foreign = status_pb2.Status(code=code_pb2.UNAVAILABLE, message="busy", details=[detail])
    assert type(status.from_status(foreign)) is errors.UnavailableError


def test_a_reason_of_a_newer_peer_falls_back_to_the_code() -> None:
    detail = Any()
    detail.Pack(error_details_pb2.ErrorInfo(reason="INVENTED_LATER", domain="stagecoach"))
    foreign = status_pb2.Status(code=code_pb2.ABORTED, message="moved", details=[detail])
    assert type(status.from_status(foreign)) is errors.StaleStateError


@pytest.mark.parametrize("name", ["message", "self", "field"])
def test_details_may_have_any_name(name: str) -> None:
    detail = Any()
    detail.Pack(
        error_details_pb2.ErrorInfo(reason="KV_FULL", domain="stagecoach", metadata={name: "1"})
    )
    foreign = status_pb2.Status(code=code_pb2.RESOURCE_EXHAUSTED, message="x", details=[detail])
    received = status.from_status(foreign)
    assert type(received) is errors.KvFullError
    assert received.details == {name: "1"}


def test_an_unreadable_detail_is_ignored() -> None:
    detail = Any(type_url="type.googleapis.com/google.rpc.ErrorInfo", value=b"\xff\xff\xff")
    foreign = status_pb2.Status(code=code_pb2.UNAVAILABLE, message="x", details=[detail])
    assert type(status.from_status(foreign)) is errors.UnavailableError


def test_unreadable_trailing_metadata_is_ignored() -> None:
    ended = CallEnded(
        grpc.StatusCode.UNAVAILABLE, "gone", (("grpc-status-details-bin", b"\xff\xff\xff"),)
    )
    received = status.from_rpc_error(ended)
    assert type(received) is errors.UnavailableError
    assert received.message == "gone"


def test_the_code_of_the_call_outranks_a_contradicting_status() -> None:
    _, _, metadata = status.trailing_metadata(errors.QueueFullError("full"))
    received = status.from_rpc_error(CallEnded(grpc.StatusCode.UNAVAILABLE, "gone", metadata))
    assert type(received) is errors.UnavailableError
    assert received.message == "gone"


async def test_an_error_crosses_a_real_call() -> None:
    sent = errors.KvFullError("stage 1 has 3 free KV blocks, 5 are needed", num_free=3)

    async def refuse(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        await context.abort(*status.trailing_metadata(sent))

    server = grpc.aio.server()
    handler = grpc.method_handlers_generic_handler(
        "test.Refusals", {"Refuse": grpc.unary_unary_rpc_method_handler(refuse)}
    )
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary("/test.Refusals/Refuse")(b"")  # type: ignore[arg-type]
    finally:
        await server.stop(None)
    received = status.from_rpc_error(caught.value)
    assert type(received) is errors.KvFullError
    assert (received.message, received.details) == (sent.message, {"num_free": "3"})


async def test_a_call_above_the_limit_of_a_server_is_refused_as_by_a_full_queue() -> None:
    first_came, first_may_end = asyncio.Event(), asyncio.Event()

    async def wait(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        first_came.set()
        await first_may_end.wait()
        return b""

    server = grpc.aio.server(maximum_concurrent_rpcs=1)
    handler = grpc.method_handlers_generic_handler(
        "test.Waits", {"Wait": grpc.unary_unary_rpc_method_handler(wait)}
    )
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
                "/test.Waits/Wait"
            )
            first = call(b"")
            await first_came.wait()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(b"")
            first_may_end.set()
            await first
    finally:
        await server.stop(None)
    received = status.from_rpc_error(caught.value)
    assert type(received) is errors.QueueFullError
    assert "limit" in received.message
