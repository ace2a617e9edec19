"""`coordinator-cli health` against real servers: what health checks of containers run."""

import asyncio
import os
import sys
from pathlib import Path

import pytest

from tests.certificates import Certificates, as_server
from tests.contract.echo_engine import EchoEngine, bound, serving
from tests.contract.stage_builders import running_stage


async def ask(*arguments: str, **environment: str) -> tuple[int | None, str]:
    """Exit code, and what was printed on either stream."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "coordinator.cli", "health", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, **environment},
    )
    output, _ = await process.communicate()
    return process.returncode, output.decode().strip()


async def test_servers_that_serve_are_healthy() -> None:
    async with running_stage() as stage, serving(EchoEngine()) as coordinator:
        for address in (stage.address, coordinator):
            assert await ask(address) == (0, "serving")
            assert await ask(address, "--json") == (
                0,
                f'{{"address": "{address}", "serving": true}}',
            )


async def test_one_that_does_not_serve_yet_is_not_healthy() -> None:
    async with bound() as (_, _, address):
        assert await ask(address) == (1, f"coordinator-cli: {address} says NOT_SERVING")


async def test_one_that_is_not_there_is_not_healthy() -> None:
    code, line = await ask("127.0.0.1:1")
    assert code == 1
    assert line.startswith("coordinator-cli: 127.0.0.1:1: ")
    assert line.count("\n") == 0


async def test_a_stage_is_asked_over_tls_with_its_own_certificate(tmp_path: Path) -> None:
    tls = Certificates(tmp_path).stage
    files = ("--tls-cert", str(tls.certificate), "--tls-key", str(tls.key))
    async with running_stage(tls=tls) as stage:
        assert await ask(stage.address, "--tls-ca", str(tls.authority), *files) == (0, "serving")
        code, line = await ask(stage.address)
        assert code == 1
        assert "it speaks TLS, and this side plain text" in line


@pytest.mark.parametrize("flag", ["--tls-cert", "--tls-key"])
async def test_tls_files_belong_together(flag: str) -> None:
    code, line = await ask("127.0.0.1:1", flag, "x.pem")
    assert code == 2
    assert "belong together" in line


async def test_without_an_address_it_asks_the_coordinator_that_the_other_commands_find(
    tmp_path: Path,
) -> None:
    certificates = Certificates(tmp_path)
    async with (
        serving(EchoEngine()) as plain,
        serving(EchoEngine(), tls=as_server(certificates.coordinator)) as over_tls,
    ):
        assert await ask(STAGECOACH_COORDINATOR=plain) == (0, "serving")
        ca = str(certificates.authority)
        for given in ((), (over_tls,)):
            found = {"STAGECOACH_COORDINATOR": over_tls, "STAGECOACH_COORDINATOR_CA": ca}
            assert await ask(*given, **found) == (0, "serving")
        assert await ask(over_tls, "--tls-ca", ca) == (0, "serving")
        # Another server's CA is not the coordinator's.
        assert await ask(plain, **found) == (0, "serving")


@pytest.mark.parametrize(
    "address",
    ["box1", "box1:", ":50050", "http://box1:50050", "box1:grpc", "box1:70000", "::1:50050"],
)
async def test_an_address_that_is_none_is_named_with_where_it_comes_from(address: str) -> None:
    code, line = await ask(address)
    assert code == 2
    assert f"address {address!r} must be HOST:PORT" in line
    code, line = await ask(STAGECOACH_COORDINATOR=address)
    assert code == 2
    assert f"address {address!r} (from STAGECOACH_COORDINATOR) must be HOST:PORT" in line
