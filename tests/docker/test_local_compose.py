"""`docker/local/compose.yaml`, for real: generate, lose a stage, leave."""

from collections.abc import Iterator
from typing import NamedTuple

import pytest

from tests.docker.compose import ComposeProject, check_nothing_is_left
from tests.docker.docker_engine import DockerEngine
from tests.docker.generation import Door

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1800)]

SERVICES = ("stage-1", "stage-2", "stage-3", "coordinator")
PROMPT = "The stagecoach left the inn at dawn and"


class Box(NamedTuple):
    """One box that runs it all."""

    project: ComposeProject
    door: Door


@pytest.fixture(scope="module")
def box(images: DockerEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    project = ComposeProject(
        engine=images,
        file="docker/local/compose.yaml",
        name="local",
        settings={"MODEL_FOLDER": str(tmp_path_factory.mktemp("models"))},
    )
    door = Door(engine=images, address="127.0.0.1:50050", url="http://127.0.0.1:8000")
    with project.up():
        door.generate(PROMPT, 1)
        yield Box(project, door)
    check_nothing_is_left(images)


def test_generation_goes_on_when_a_stage_is_killed(box: Box) -> None:
    whole = box.door.generate(PROMPT, 150)
    assert whole.text
    running = box.door.start(PROMPT, 150)
    running.wait_for(20)
    box.project.kill("stage-2")
    assert running.rest() == whole
    assert int(box.project.inspect("stage-2", "{{.RestartCount}}")) >= 1
    assert whole.text.startswith(box.door.generate_over_http(PROMPT, 8))


def test_containers_may_do_nothing_they_need_not(box: Box) -> None:
    for service in SERVICES:
        box.project.check_hardened(service)


def test_containers_know_that_they_are_well(box: Box) -> None:
    box.door.generate(PROMPT, 1)
    for service in SERVICES:
        box.project.check_health(service)
