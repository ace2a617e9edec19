"""The compose files of the nodes, for real: three stages and a coordinator, as on four boxes.

Each box is an address of the engine's network, with an `.env`, certificates and keys of its own.
"""

import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.byte_models import MAX_MODEL_LEN, byte_model
from tests.docker.compose import USER, ComposeProject, check_nothing_is_left
from tests.docker.docker_engine import ROOT, DockerEngine
from tests.docker.generation import Door
from tests.faults.reference import Continuation, continuations

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1800)]

CLI = (sys.executable, "-m", "coordinator.cli")
COORDINATOR = "10.99.0.10"
STAGES = ("10.99.0.11", "10.99.0.12", "10.99.0.13")
NUM_PROMPT_TOKENS = 8
NUM_TOKENS = MAX_MODEL_LEN - 32


class Nodes(NamedTuple):
    """Four boxes that are up."""

    stages: tuple[ComposeProject, ...]
    coordinator: ComposeProject
    door: Door

    def containers(self) -> list[tuple[ComposeProject, str]]:
        return [*((stage, "stage") for stage in self.stages), (self.coordinator, "coordinator")]


def make_authority(engine: DockerEngine, pki: Path) -> Path:
    engine.run(*CLI, "certs", "init", str(pki))
    return pki / "ca.pem"


def credentials_of(
    engine: DockerEngine, pki: Path, name: str, *, hosts: tuple[str, ...], role: str
) -> Path:
    """Makes the folder that the compose file of a box mounts from, as docs/deploy.md says."""
    wanted = [part for host in hosts for part in ("--host", host)]
    engine.run(*CLI, "certs", "issue", str(pki), "--name", name, "--role", role, *wanted)
    folder = pki.parent / name
    folder.mkdir()
    shutil.copy(pki / "ca.pem", folder / "ca.pem")
    shutil.copy(pki / f"{name}.pem", folder / "node.pem")
    shutil.copy(pki / f"{name}.key", folder / "node.key")
    give_to_containers(folder / "node.key")
    return folder


def new_api_key(engine: DockerEngine, file: Path) -> str:
    made = json.loads(engine.run(*CLI, "keys", "new", str(file), "--name", "alice", "--json"))
    give_to_containers(file)
    return str(made["key"])


def give_to_containers(secret: Path) -> None:
    assert secret.stat().st_mode & 0o077 == 0
    os.chown(secret, USER, USER)


def node(engine: DockerEngine, name: str, kind: str, settings: Mapping[str, str]) -> ComposeProject:
    """One box, whose `.env` has the lines of `.env.example` and where models lie."""
    example = (ROOT / "docker" / kind / ".env.example").read_text().splitlines()
    assert {line.partition("=")[0] for line in example} | {"MODEL_FOLDER"} == settings.keys()
    file = f"docker/{kind}/compose.yaml"
    return ComposeProject(engine=engine, file=file, name=name, settings=settings)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    folder.chmod(0o755)
    path = byte_model(folder)
    for file in path.iterdir():
        file.chmod(0o644)  # the containers' user reads them; safetensors leaves them to the owner
    return path


@pytest.fixture(scope="module")
def continuation(model: Path) -> Continuation:
    [found] = continuations(model, num_tokens=NUM_PROMPT_TOKENS + NUM_TOKENS, count=1)
    return found


@pytest.fixture(scope="module")
def nodes(
    images: DockerEngine, model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Nodes]:
    pki = tmp_path_factory.mktemp("credentials") / "pki"
    authority = make_authority(images, pki)
    shared = {"MODEL": f"/models/{model.name}", "MODEL_FOLDER": str(model.parent)}
    stages = []
    for number, host in enumerate(STAGES, 1):
        images.add_address(host)
        credentials = credentials_of(images, pki, f"box{number}", hosts=(host,), role="stage")
        settings = {
            **shared,
            "STAGE": f"{number}/{len(STAGES)}",
            "LISTEN": f"{host}:50051",
            "CREDENTIALS": str(credentials),
        }
        stages.append(node(images, f"box{number}", "stage", settings))
    images.add_address(COORDINATOR)
    credentials = credentials_of(images, pki, "front", hosts=(COORDINATOR,), role="coordinator")
    settings = {
        **shared,
        "STAGES": " ".join(f"{host}:50051" for host in STAGES),
        "LISTEN": f"{COORDINATOR}:50050",
        "HTTP_LISTEN": f"{COORDINATOR}:8000",
        "CREDENTIALS": str(credentials),
    }
    door = Door(
        engine=images,
        address=settings["LISTEN"],
        url=f"https://{settings['HTTP_LISTEN']}",
        authority=authority,
        api_key=new_api_key(images, credentials / "api-keys"),
    )
    coordinator = node(images, "front", "coordinator", settings)
    with ExitStack() as stack:
        for project in (*stages, coordinator):
            stack.enter_context(project.up())
        door.generate((5,), 1)  # so that what fails to start fails here, where its logs are shown
        yield Nodes(tuple(stages), coordinator, door)
    check_nothing_is_left(images)


def test_the_doors_give_the_right_text_to_holders_of_a_key(
    nodes: Nodes, continuation: Continuation
) -> None:
    prompt = continuation.prompt(NUM_PROMPT_TOKENS)
    generated = nodes.door.generate(prompt, NUM_TOKENS)
    assert generated.token_ids == list(continuation.output(NUM_PROMPT_TOKENS, NUM_TOKENS))
    assert nodes.door.generate_over_http(prompt, NUM_TOKENS) == generated.text
    stranger = nodes.door.without_key()
    with pytest.raises(AssertionError, match="401"):
        stranger.generate_over_http(prompt, 1)


def test_containers_may_do_nothing_they_need_not(nodes: Nodes) -> None:
    for project, service in nodes.containers():
        project.check_hardened(service)


def test_containers_know_that_they_are_well(nodes: Nodes, continuation: Continuation) -> None:
    nodes.door.generate(continuation.prompt(NUM_PROMPT_TOKENS), 1)
    for project, service in nodes.containers():
        project.check_health(service)


def test_a_stage_that_is_killed_comes_back_and_generation_goes_on(
    nodes: Nodes, continuation: Continuation
) -> None:
    stage = nodes.stages[1]
    running = nodes.door.start(continuation.prompt(NUM_PROMPT_TOKENS), NUM_TOKENS)
    running.wait_for(20)
    stage.kill("stage")
    generated = running.rest()
    assert generated.token_ids == list(continuation.output(NUM_PROMPT_TOKENS, NUM_TOKENS))
    assert int(stage.inspect("stage", "{{.RestartCount}}")) >= 1
