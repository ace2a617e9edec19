"""An error of a command names a flag as its operator wrote it.

The cases follow from the commands, so that a new flag is covered by itself: it is refused by its
name, or is listed here as one that takes every value, or whose value is looked at only later.
"""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import pytest
import typer
from typer.main import get_command
from typer.testing import CliRunner

from coordinator.cli.app import app
from coordinator.cli.cluster import cluster_run
from coordinator.cli.shared.connection import Connection
from coordinator.doors.grpc.messages import request_spec
from stage_server.process import command as stage_command
from stagecoach.client.argument_names import argument_name
from stagecoach.client.channel import Peer
from stagecoach.client.request import generate_request
from stagecoach.contract.error_words import in_words_of
from stagecoach.contract.errors import InvalidArgumentError, UnavailableError
from stagecoach.security.certificate_folder import CertificateFolder
from stagecoach.security.role import Role

RUNNER = CliRunner()
COMMAND_OF = cache(get_command)
"""What Typer makes of an application takes as long as all else that a flag is refused with."""
STOPPED = UnavailableError("stopped before anything starts")

APPS: Mapping[str, typer.Typer] = {"coordinator-cli": app, "stage-server": stage_command.app}
GOOD: Mapping[str, tuple[str, ...]] = {
    "up": ("--model", "demo", "--stages", "1"),
    "serve": ("--model", "demo", "--stage", "localhost:1"),
    "generate": ("x", "--coordinator", "localhost:1", "--json"),
    "chat": ("--coordinator", "localhost:1"),
    "status": ("--coordinator", "localhost:1"),
    "bench": ("--coordinator", "localhost:1"),
    "perplexity": (str(Path(__file__)), "--coordinator", "localhost:1"),
    "plan": ("--model", "demo", "--gpu", "t4-16gb"),
    "health": ("localhost:1",),
    "init": ("DIR",),
    "issue": ("DIR", "--name", "a"),
    "renew": ("DIR", "--name", "a"),
    "show": ("DIR",),
    "new": ("DIR/keys", "--name", "a"),
    "stage-server": ("--model", "demo", "--layers", "0:1"),
}
"""Arguments with which a command would go on."""

BAD = {
    "integer": ("-2", "0", "4611686018427387904", "x"),
    "float": ("nan", "-1", "x"),
}
BAD_TEXTS = ("", "!", "0:99", "/no/such/file", "x" * 300)

TAKES_ALL = {
    *("--model", "--file", "--system", "--regex", "--stop", "--seed", "--trace", "--plot"),
    *("--tls-server-name", "--unsafe-fault-hooks", "--json-schema", "--api-keys-file"),
}
PASSED_ON = {
    *("--dtype", "--weights", "--kv-dtype", "--kv-memory"),
    *("--engine", "--emulate", "--efficiency"),
    *("--otlp-endpoint", "--served-model-name", "--allowed-host", "--cors-origin"),
    *("--log-format", "--log-level"),
}
"""By `up`, to commands with a flag of the same name."""


def commands() -> Iterator[tuple[str, str, tuple[str, ...], Any]]:
    """The name of each command, its application, the way to it, and what Typer made of it."""
    for app_name, application in APPS.items():
        waiting: list[tuple[tuple[str, ...], Any]] = [((), COMMAND_OF(application))]
        while waiting:
            way, made = waiting.pop()
            inner = getattr(made, "commands", None)
            if inner is None:
                yield way[-1] if way else app_name, app_name, way, made
            else:
                waiting += (((*way, name), one) for name, one in inner.items())


CASES = [
    (name, app_name, way, param.type.name, flag)
    for name, app_name, way, made in commands()
    for param in made.params
    for flag in param.opts
    if flag.startswith("--") and not getattr(param, "is_flag", False)
]


class RefusingClient:
    """Refuses requests as the SDK and a coordinator do."""

    def __init__(self, connection: Connection) -> None:
        Peer.of(connection.address, tls=connection.tls, api_key=connection.api_key)

    def __enter__(self) -> "RefusingClient":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def generate(self, prompt: Any, *, timeout_s: float | None, **options: Any) -> NoReturn:
        try:
            request_spec(generate_request(prompt, **options))
        except InvalidArgumentError as error:
            raise in_words_of(error, argument_name) from error
        raise STOPPED


def stop(*_: object, **__: object) -> NoReturn:
    raise STOPPED


@pytest.fixture(autouse=True)
def nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("typer.testing._get_command", COMMAND_OF)
    monkeypatch.setattr(cluster_run, "run_cluster", stop)
    monkeypatch.setattr("coordinator.process.run", stop)
    monkeypatch.setattr("coordinator.cli.health_check.grpc.insecure_channel", stop)
    monkeypatch.setattr(stage_command, "_run", stop)
    monkeypatch.setattr(Connection, "client", lambda one: RefusingClient(one))
    monkeypatch.setattr(Connection, "async_client", lambda one: stop(RefusingClient(one)))


@pytest.mark.parametrize(
    ("name", "app_name", "way", "kind", "flag"),
    CASES,
    ids=[f"{case[0]}{case[-1]}" for case in CASES],
)
def test_a_flag_is_named_as_a_flag(
    tmp_path: Path, name: str, app_name: str, way: tuple[str, ...], kind: str, flag: str
) -> None:
    if "DIR" in GOOD[name] and name != "init":
        folder = CertificateFolder(tmp_path)
        now = datetime.now(UTC)
        folder.init(now=now, days=9)
        if name == "renew":
            folder.issue("a", role=Role.STAGE, hosts=["a"], now=now)
    good = [part.replace("DIR", str(tmp_path)) for part in GOOD[name]]
    if flag in good:
        place = good.index(flag)
        del good[place : place + 2]
    is_refused = False
    for value in BAD.get(kind, BAD_TEXTS):
        result = RUNNER.invoke(APPS[app_name], [*way, *good, flag, value])
        assert result.exit_code in (0, 1, 2), result.exception
        if result.exit_code == 2:
            is_refused = True
            told = result.output.strip().splitlines()[-1]
            assert flag in told
            assert flag.strip("-").replace("-", "_") not in told or "-" not in flag.strip("-")
    if name == "up" and flag in PASSED_ON:
        assert {flag} <= {other for owner, *_, other in CASES if owner in ("serve", "stage-server")}
    else:
        assert is_refused or flag in TAKES_ALL


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("serve --model demo --stage h:1 --max-num-seqs 0", "--max-num-seqs is 0"),
        ("serve --model demo --stage h:1 --listen x", "--listen 'x' is not HOST:PORT"),
        ("generate x --temperature 200.1", "--temperature is 200.1, must be in"),
        ("generate x --min-tokens 5 --max-tokens 2", "--min-tokens is 5, must be in [0, 2]"),
        ("generate x --timeout-s=-1", "stopped"),
    ],
)
def test_what_the_coordinator_says(arguments: str, told: str) -> None:
    assert told in RUNNER.invoke(app, arguments.split()).output


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("--max-num-seqs 0", "--max-num-seqs is 0"),
        ("--efficiency 0.5", "--efficiency needs --engine emulated"),
        ("--engine emulated", "--emulate is not given: --engine emulated needs"),
        ("--engine emulated --emulate t4-16gb --device cpu", "--device cpu is of engine"),
        ("--kv-memory 9999TiB", "--kv-memory is"),
    ],
)
def test_what_a_stage_server_says(arguments: str, told: str) -> None:
    result = RUNNER.invoke(
        stage_command.app, ["--model", "demo", "--layers", "0:1", *arguments.split()]
    )
    assert result.exit_code == 2
    assert told in result.output
