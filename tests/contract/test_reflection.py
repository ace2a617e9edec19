"""Server reflection: what a client that has no `.proto` file finds at both kinds of server."""

from collections.abc import Iterator

import grpc
import pytest
from google.protobuf import descriptor_pool, json_format, message_factory
from google.protobuf.message import Message
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from coordinator.doors.access.api_key import new_key
from coordinator.doors.access.callers import Callers
from stagecoach.security.credentials import channel_credentials
from stagecoach.serving.reflection import SERVICE_NAMES
from tests.certificates import Certificates
from tests.contract.echo_engine import EchoEngine, serving
from tests.contract.stage_builders import running_stage
from tests.threads import in_a_thread

DEADLINE_S = 90.0
ALICE = new_key("alice")


def services(channel: grpc.Channel) -> set[str]:
    return set(ProtoReflectionDescriptorDatabase(channel).get_services())


def call(channel: grpc.Channel, method: str, request: dict[str, object]) -> dict[str, object]:
    """Calls a method of one answer, knowing nothing but its name."""
    pool = descriptor_pool.DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
    service, _, name = method.rpartition(".")
    found = pool.FindServiceByName(service).FindMethodByName(name)
    asked = message_factory.GetMessageClass(found.input_type)()
    stub: grpc.UnaryUnaryMultiCallable[Message, Message] = channel.unary_unary(
        f"/{service}/{name}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=message_factory.GetMessageClass(found.output_type).FromString,
    )
    answer = stub(json_format.ParseDict(request, asked), timeout=DEADLINE_S)
    return json_format.MessageToDict(answer)


def ask(
    channel: grpc.Channel, service: str, metadata: tuple[tuple[str, str], ...] = ()
) -> "list[reflection_pb2.ServerReflectionResponse]":
    """Asks one of the two reflection services for its list."""
    stub = channel.stream_stream(
        f"/{service}/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    return list(stub(iter([request]), timeout=DEADLINE_S, metadata=metadata))


@pytest.fixture
def coordinator() -> Iterator[grpc.Channel]:
    with in_a_thread(serving(EchoEngine())) as address, grpc.insecure_channel(address) as channel:
        yield channel


def test_a_client_without_files_finds_and_calls_a_coordinator(coordinator: grpc.Channel) -> None:
    assert services(coordinator) == {
        "stagecoach.v1.GenerationService",
        "grpc.health.v1.Health",
        *SERVICE_NAMES,
    }
    answer = call(
        coordinator, "stagecoach.v1.GenerationService.Tokenize", {"prompt": {"text": "ab"}}
    )
    assert answer == {"tokenIds": [97, 98]}


@pytest.mark.parametrize("service", SERVICE_NAMES)
def test_both_names_of_the_service_answer(coordinator: grpc.Channel, service: str) -> None:
    (answer,) = ask(coordinator, service)
    assert len(answer.list_services_response.service) == 4


def test_a_client_without_files_finds_and_calls_a_stage() -> None:
    with in_a_thread(running_stage()) as stage, grpc.insecure_channel(stage.address) as channel:
        assert "stagecoach.v1.StageService" in services(channel)
        assert call(channel, "stagecoach.v1.StageService.GetInfo", {})["numModelLayers"] == 6


def test_what_does_not_exist_is_not_found_and_the_stream_goes_on(
    coordinator: grpc.Channel,
) -> None:
    database = ProtoReflectionDescriptorDatabase(coordinator)
    for name in ("no.Such", "", "stagecoach.v1.Nothing", "x" * 10_000):
        with pytest.raises(KeyError):
            database.FindFileContainingSymbol(name)
    assert database.FindFileByName("google/rpc/status.proto").package == "google.rpc"


def test_reflection_asks_for_the_same_key_as_every_call() -> None:
    callers = Callers.of_text(ALICE.line)
    with (
        in_a_thread(serving(EchoEngine(), callers=callers)) as address,
        grpc.insecure_channel(address) as channel,
    ):
        for service in SERVICE_NAMES:
            for key in (None, "wrong"):
                metadata = () if key is None else (("authorization", f"Bearer {key}"),)
                with pytest.raises(grpc.RpcError) as caught:
                    ask(channel, service, metadata)
                assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
            assert ask(channel, service, (("authorization", f"Bearer {ALICE.key}"),))


def test_a_stage_tells_its_coordinators_only(tmp_path_factory: pytest.TempPathFactory) -> None:
    certificates = Certificates(tmp_path_factory.mktemp("certificates"))
    with in_a_thread(running_stage(tls=certificates.stage)) as stage:
        for files, allowed in ((certificates.coordinator, True), (certificates.stage, False)):
            with grpc.secure_channel(stage.address, channel_credentials(files)) as channel:
                if allowed:
                    assert "stagecoach.v1.StageService" in services(channel)
                    continue
                for service in SERVICE_NAMES:
                    with pytest.raises(grpc.RpcError) as caught:
                        ask(channel, service)
                    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
