"""Bytes that are no message, sent to every method that a server's door has."""

import logging
from collections.abc import Sequence
from typing import NamedTuple

import grpc
import pytest
from google.protobuf import descriptor_pool
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from coordinator.doors.access.api_key import new_key
from coordinator.doors.access.callers import Callers
from stagecoach.contract.errors import InvalidArgumentError
from stagecoach.contract.status import from_rpc_error
from tests.contract.echo_engine import EchoEngine, serving
from tests.contract.stage_builders import running_stage
from tests.threads import in_a_thread

DEADLINE_S = 90.0
NOT_SERVED = frozenset({"/grpc.health.v1.Health/List"})
"""Named by a descriptor, and UNIMPLEMENTED."""
GARBAGE = b"\xff" * 50
ALICE = new_key("alice")


class Method(NamedTuple):
    path: str
    takes_stream: bool


def methods(channel: grpc.Channel) -> Sequence[Method]:
    """All that the door says it has; the two versions of reflection have the same methods."""
    database = ProtoReflectionDescriptorDatabase(channel)
    pool = descriptor_pool.DescriptorPool(database)
    return [
        Method(f"/{name}/{method.name}", method.client_streaming)
        for name in database.get_services()
        for method in pool.FindServiceByName(
            name.replace("reflection.v1.", "reflection.v1alpha.")
        ).methods
        if f"/{name}/{method.name}" not in NOT_SERVED
    ]


def send(channel: grpc.Channel, method: Method, *pieces: bytes) -> grpc.RpcError | None:
    """How a call with some messages ends; None when it is answered."""
    call: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(
        method.path,
        request_serializer=lambda piece: bytes(piece),
        response_deserializer=lambda data: bytes(data),
    )
    try:
        list(call(iter(pieces), timeout=DEADLINE_S))
    except grpc.RpcError as error:
        return error
    return None


def test_every_method_of_a_coordinator_refuses_what_is_no_message(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with in_a_thread(serving(EchoEngine())) as address, grpc.insecure_channel(address) as channel:
        found = methods(channel)
        assert len({method.path.split("/")[1] for method in found}) == 4
        for method in found:
            error = send(channel, method, GARBAGE)
            assert error is not None
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT, method
            assert isinstance(from_rpc_error(error), InvalidArgumentError)
    assert [one for one in caplog.records if one.levelno >= logging.WARNING] == []


def test_no_method_of_a_stage_fails_over_what_is_no_message(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It makes nothing of the request for its facts, which has no fields."""
    with in_a_thread(running_stage()) as stage, grpc.insecure_channel(stage.address) as channel:
        for method in methods(channel):
            error = send(channel, method, GARBAGE)
            if method.path != "/stagecoach.v1.StageService/GetInfo":
                assert error is not None
                assert error.code() is grpc.StatusCode.INVALID_ARGUMENT, method
    assert [one for one in caplog.records if one.levelno >= logging.WARNING] == []


def test_a_stream_of_requests_is_answered_up_to_what_is_no_message() -> None:
    with in_a_thread(serving(EchoEngine())) as address, grpc.insecure_channel(address) as channel:
        for method in methods(channel):
            if not method.takes_stream:
                continue
            error = send(channel, method, b"", GARBAGE)
            assert error is not None
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_who_has_no_key_is_told_that_first() -> None:
    callers = Callers.of_text(ALICE.line)
    with (
        in_a_thread(serving(EchoEngine(), callers=callers)) as address,
        grpc.insecure_channel(address) as channel,
    ):
        for name in ("Generate", "Tokenize", "GetStatus", "WatchSteps"):
            path = f"/stagecoach.v1.GenerationService/{name}"
            error = send(channel, Method(path, takes_stream=False), GARBAGE)
            assert error is not None
            assert error.code() is grpc.StatusCode.UNAUTHENTICATED
