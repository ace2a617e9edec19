"""TLS between coordinator and stages: real servers, real certificates, every way to go wrong.

This is row B11 of what has to be survived: no credential, a wrong or expired certificate, plain
text to a TLS port. Each has its error, and after each the right one still works.
"""

import asyncio
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import grpc
import httpx2
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from coordinator.pipeline import stage_channel
from coordinator.pipeline.link_config import LinkConfig
from coordinator.pipeline.stage_link import StageLink
from stagecoach.client import AsyncClient, Client
from stagecoach.contract.address import Address
from stagecoach.contract.errors import StagecoachError, UnauthenticatedError, UnavailableError
from stagecoach.security.certificate import Certificate
from stagecoach.security.credentials import channel_credentials
from stagecoach.security.role import Role
from stagecoach.security.served import Served, certificate_of_role
from stagecoach.security.tls_files import TlsFiles
from stagecoach.v1 import stage_pb2, stage_pb2_grpc
from tests.certificates import Certificates, as_server
from tests.contract.arithmetic_engine import ArithmeticEngine, arithmetic_info
from tests.contract.echo_engine import EchoEngine, serving
from tests.contract.http_door import serving_http
from tests.contract.stage_builders import (
    DEADLINE_S,
    ForwardCall,
    bound_stage,
    opening,
    refusal_of,
    running_stage,
)
from tests.faults.fault_proxy import FaultProxy, Network


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


def link_to(address: str, tls: TlsFiles | None, config: LinkConfig | None = None) -> StageLink:
    return StageLink(
        address,
        coordinator_id="tester",
        config=config or LinkConfig(),
        on_lost=lambda *_: None,
        tls=tls,
    )


async def refusal(address: str, tls: TlsFiles | None) -> StagecoachError:
    """The error that a coordinator with these files gets from a stage."""
    link = link_to(address, tls)
    try:
        with pytest.raises(StagecoachError) as caught:
            await link.get_info()
    finally:
        await link.close()
    assert f"stage {address}: " in caught.value.message
    return caught.value


async def check_works(address: str, tls: TlsFiles | None, epoch: int = 1) -> None:
    link = link_to(address, tls)
    await link.open(await link.get_info(), epoch)
    assert link.is_open
    assert link._opening._can_look  # at its connection, over TLS as without
    await link.close()


async def test_a_coordinator_uses_a_stage_over_tls(certificates: Certificates) -> None:
    async with running_stage(tls=certificates.stage) as stage:
        await check_works(stage.address, certificates.coordinator)


@pytest.mark.parametrize(
    ("choose", "says"),
    [
        (lambda _: None, "it speaks TLS, and this side plain text"),
        (lambda c: c.foreign_coordinator, "is not signed by the CA that this side trusts"),
        (lambda c: c.expired_coordinator, "the TLS files of this coordinator are not good"),
        (
            lambda c: TlsFiles(
                certificate=c.foreign_coordinator.certificate,
                key=c.foreign_coordinator.key,
                authority=c.all_authorities,
            ),
            "it refused the certificate of this side, their-coordinator.pem",
        ),
        (lambda c: c.stage, "the certificate of 'box1' has role stage, role coordinator is needed"),
    ],
    ids=["plain text", "wrong CA", "expired", "not signed", "a stage"],
)
async def test_a_stage_takes_no_other_client(
    certificates: Certificates, choose: Callable[[Certificates], TlsFiles | None], says: str
) -> None:
    async with running_stage(tls=certificates.stage) as stage:
        error = await refusal(stage.address, choose(certificates))
        assert isinstance(error, UnauthenticatedError)
        assert says in error.message
        await check_works(stage.address, certificates.coordinator)


@pytest.mark.parametrize(
    ("choose", "says"),
    [
        (lambda c: c.expired_stage, "its certificate (old-box) expired on 20"),
        (lambda c: c.elsewhere, "its certificate (box9) is for box9, 10.9.9.9, not for 127.0.0.1"),
        (lambda c: c.foreign_stage, "its certificate (their-box) is not signed by the CA"),
        (lambda _: None, "it speaks plain text, and this side TLS"),
        (
            lambda c: c.coordinator,
            "the certificate of 'coordinator' has role coordinator, role stage is needed",
        ),
        (lambda c: c.without_role, "the certificate of 'bare' has no role, role stage is needed"),
        (lambda c: c.misspelt, "the certificate of 'misspelt' has no role, role stage is needed"),
    ],
    ids=["expired", "wrong host", "wrong CA", "plain text", "a coordinator", "no role", "STAGE"],
)
async def test_a_coordinator_takes_no_other_stage(
    certificates: Certificates,
    choose: Callable[[Certificates], TlsFiles | None],
    says: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Certificate, "problem_at", lambda *_: None)  # or the server would not start
    async with running_stage(tls=choose(certificates)) as stage:
        monkeypatch.undo()
        error = await refusal(stage.address, certificates.coordinator)
        assert isinstance(error, UnauthenticatedError)
        assert says in error.message


async def test_a_stage_certificate_may_ask_for_health_and_nothing_else(
    certificates: Certificates,
) -> None:
    credentials = channel_credentials(certificates.stage)
    async with (
        running_stage(tls=certificates.stage) as stage,
        grpc.aio.secure_channel(stage.address, credentials) as channel,
    ):
        health = health_pb2_grpc.HealthStub(channel)
        answer = await health.Check(health_pb2.HealthCheckRequest(), timeout=DEADLINE_S)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING

        methods = stage_pb2.DESCRIPTOR.services_by_name["StageService"].methods
        assert len(methods) >= 2
        for method in methods:
            path = f"/{method.containing_service.full_name}/{method.name}"
            # Without serializers: one message, as bytes, for every method.
            call: Callable[[], ForwardCall] = channel.stream_stream(path)
            message = opening().SerializeToString()
            error = await refusal_of(call, message)  # type: ignore[arg-type]
            assert isinstance(error, UnauthenticatedError), method.name


async def test_renewed_certificates_are_taken_up_and_damaged_ones_are_not(
    certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    files = certificates.issue("renewed", Role.STAGE)
    async with running_stage(tls=files) as stage:
        running = link_to(stage.address, certificates.coordinator)
        await running.open(await running.get_info(), 1)

        certificates.issue("renewed", Role.STAGE, hosts=("box9",))
        error = await refusal(stage.address, certificates.coordinator)
        assert "is for box9, not for 127.0.0.1" in error.message
        assert running.is_open

        certificates.issue("renewed", Role.STAGE)
        await check_works(stage.address, certificates.coordinator, epoch=2)
        files.key.write_text("damaged")
        await check_works(stage.address, certificates.coordinator, epoch=3)
        assert "new TLS files are not taken: tls_key" in caplog.text
        assert "damaged" not in caplog.text
        await running.close()


async def test_a_stage_whose_new_certificate_is_not_a_stages_is_left(
    certificates: Certificates,
) -> None:
    files = certificates.issue("turned", Role.STAGE)
    async with running_stage(tls=files) as stage:
        running = link_to(stage.address, certificates.coordinator)
        await running.open(await running.get_info(), 1)
        certificates.issue("turned", Role.COORDINATOR)
        assert running.is_open
        with pytest.raises(UnauthenticatedError, match="has role coordinator, role stage"):
            await link_to(stage.address, certificates.coordinator).open(await running.get_info(), 2)
        await running.close()


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that each look at a stage's certificate was given, in seconds."""
    found: list[float] = []

    def look(address: str, files: TlsFiles, role: Role, *, timeout_s: float) -> Served:
        found.append(timeout_s)
        return certificate_of_role(address, files, role, timeout_s=timeout_s)

    monkeypatch.setattr(stage_channel, "certificate_of_role", look)
    return found


async def test_a_certificate_is_looked_at_once_on_the_way_to_a_stream(
    certificates: Certificates, looks: list[float]
) -> None:
    async with running_stage(tls=certificates.stage) as stage:
        link = link_to(stage.address, certificates.coordinator)
        for epoch in (1, 2):
            await link.open(await link.get_info(), epoch)
            assert len(looks) == epoch
            link.drop()
        await link.close()


async def test_another_certificate_on_the_way_to_a_stream_is_looked_at_anew(
    certificates: Certificates, looks: list[float]
) -> None:
    files = certificates.issue("changed", Role.STAGE)
    async with running_stage(tls=files) as stage:
        link = link_to(stage.address, certificates.coordinator)
        info = await link.get_info()
        certificates.issue("changed", Role.STAGE)
        with pytest.raises(UnavailableError):
            await link.open(info, 1)
        await link.open(info, 2)
        assert len(looks) == 2
        await link.close()


async def test_a_stage_that_shows_no_certificate_in_time_is_given_longer(
    certificates: Certificates, looks: list[float]
) -> None:
    async def say_nothing(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await over.wait()
        writer.close()

    over = asyncio.Event()
    server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    address = "{}:{}".format(*server.sockets[0].getsockname())
    config = LinkConfig(connect_timeout_s=0.05)
    link = link_to(address, certificates.coordinator, config)
    for _ in range(4):
        with pytest.raises(UnavailableError, match=f"stage {address}: no TLS handshake in 0"):
            await link.get_info()
    assert looks == [0.05, 0.1, 0.2, 0.2]
    over.set()
    server.close()


async def test_a_stage_at_the_end_of_a_long_way_is_reached_over_tls(
    certificates: Certificates,
) -> None:
    """Its handshakes ate the time of the call, and an answer to a ping was always late."""
    async with running_stage(tls=certificates.stage) as stage:
        with FaultProxy(stage.address) as proxy:
            proxy.become(Network(delay_s=0.4))
            config = LinkConfig(connect_timeout_s=1.0, keepalive_s=0.4)
            link = link_to(proxy.address, certificates.coordinator, config)
            info = None
            async with asyncio.timeout(DEADLINE_S):
                while info is None:
                    with suppress(StagecoachError):
                        info = await link.get_info()
                while not link.is_open:
                    with suppress(StagecoachError):
                        await link.open(info, time.time_ns())
            await link.close()


async def test_a_channel_takes_no_certificate_but_the_one_whose_role_was_read(
    certificates: Certificates,
) -> None:
    async with running_stage(tls=certificates.stage) as stage:
        served = await asyncio.to_thread(
            certificate_of_role, stage.address, certificates.coordinator, Role.STAGE, timeout_s=5
        )
        for files, works in ((certificates.stage, True), (certificates.coordinator, False)):
            async with (
                running_stage(tls=files) as other,
                grpc.aio.secure_channel(
                    other.address,
                    channel_credentials(certificates.coordinator, served=served.certificate),
                ) as channel,
            ):
                stub = stage_pb2_grpc.StageServiceStub(channel)
                call = stub.GetInfo(stage_pb2.GetInfoRequest(), timeout=DEADLINE_S)
                code = await call.code()
                assert code is (grpc.StatusCode.OK if works else grpc.StatusCode.UNAVAILABLE)


def test_a_stage_server_does_not_start_with_a_coordinators_certificate(
    certificates: Certificates, tmp_path: Path
) -> None:
    tls = certificates.coordinator
    assert tls.authority is not None
    command = [sys.executable, "-m", "stage_server", "--model", "demo", "--layers", "0:1"]
    command += ["--listen", "127.0.0.1:0", "--tls-ca", str(tls.authority)]
    command += ["--tls-cert", str(tls.certificate), "--tls-key", str(tls.key)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path.parent)
    assert done.returncode == 1
    assert "has role coordinator, role stage is needed" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


async def test_proxies_of_the_environment_are_not_used_between_stages(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "grpc_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("no_proxy", "no_grpc_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for tls in (None, certificates.stage):
        async with running_stage(tls=tls) as stage:
            await check_works(stage.address, tls and certificates.coordinator)


async def test_a_second_stage_on_one_port_is_refused(certificates: Certificates) -> None:
    for tls in (None, certificates.stage):
        async with running_stage(tls=tls) as stage:
            with pytest.raises(StagecoachError, match=f"cannot listen on {stage.address}"):
                async with bound_stage(
                    lambda: ArithmeticEngine(arithmetic_info()),
                    Address.parse(stage.address, field="listen"),
                    tls=tls,
                ):
                    pass


async def test_clients_reach_a_coordinator_over_tls(certificates: Certificates) -> None:
    async with (
        serving(EchoEngine(), tls=as_server(certificates.coordinator)) as address,
        AsyncClient(address, tls=certificates.authority) as client,
    ):
        assert (await client.complete("ab", max_tokens=3)).text == "aba"


@pytest.mark.parametrize(
    ("choose", "says"),
    [
        (lambda _: False, "it speaks TLS, and this side plain text"),
        (lambda c: c.foreign_authority, "is not signed by the CA that this side trusts"),
        (lambda _: True, "is not signed by a CA that this side trusts"),
    ],
)
async def test_a_client_is_told_what_is_wrong(
    certificates: Certificates, choose: Callable[[Certificates], bool | Path], says: str
) -> None:
    async with (
        serving(EchoEngine(), tls=as_server(certificates.coordinator)) as address,
        AsyncClient(address, tls=choose(certificates)) as client,
    ):
        with pytest.raises(UnauthenticatedError) as caught:
            await client.status(timeout_s=DEADLINE_S)
    assert caught.value.message.startswith(f"coordinator at {address}: ")
    assert says in caught.value.message


def test_a_server_that_is_not_there_is_not_taken_for_a_matter_of_tls(
    certificates: Certificates,
) -> None:
    with (
        Client("127.0.0.1:1", tls=certificates.authority) as client,
        pytest.raises(UnavailableError, match="Connection refused"),
    ):
        client.status(timeout_s=DEADLINE_S)


async def test_https_serves_and_takes_up_renewed_certificates(certificates: Certificates) -> None:
    files = certificates.issue("door", Role.COORDINATOR)
    context = ssl.create_default_context(cafile=certificates.authority)
    async with serving_http(EchoEngine(), tls=as_server(files)) as address:
        assert await https_status(address, context) == 200
        certificates.issue("door", Role.COORDINATOR, hosts=("box9",))
        with pytest.raises(httpx2.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            await https_status(address, context)
        certificates.issue("door", Role.COORDINATOR)
        assert await https_status(address, context) == 200


async def https_status(address: str, context: ssl.SSLContext) -> int:
    async with httpx2.AsyncClient(verify=context, trust_env=False) as client:
        return (await client.get(f"https://{address}/health")).status_code
