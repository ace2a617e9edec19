"""The stage's image for GPU boxes has what kernels need, within the limits that its file sets.

There is no card: the image is built with both compose files and run with the first alone, which
sets the limits.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.docker.compose import ComposeProject
from tests.docker.docker_engine import ROOT, DockerEngine, make_base_image

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1800)]

FILES = ("docker/stage/compose.yaml", "docker/stage/compose.gpu.yaml")
COMPILER_BASE = "stagecoach-base:compiler"
SCRIPT = Path(__file__).parent / "compile_kernels.py"


def fetch_triton(folder: Path) -> None:
    """Fetches it for the image's Python; an image with torch's CUDA build has it already."""
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--target", str(folder)),
            *("--python-version", "3.11", "--only-binary=:all:", "--no-deps"),
            *("-c", "constraints.txt", "triton"),
        ],
        cwd=ROOT,
        check=True,
    )


def test_kernels_are_compiled_within_the_limits_of_the_container(
    images: DockerEngine, tmp_path: Path
) -> None:
    gpu = yaml.safe_load((ROOT / FILES[1]).read_text())["services"]["stage"]
    assert gpu["build"]["args"]["COMPILER"] == "${COMPILER-gcc libc6-dev}"
    # An image build reaches no network here: the base has what the argument would install.
    make_base_image(images, tmp_path, COMPILER_BASE, "gcc", "libc6-dev", "libpython3-dev")
    triton = tmp_path / "triton"
    fetch_triton(triton)
    for name in ("ca.pem", "node.pem", "node.key"):
        (tmp_path / name).touch()
    settings = {
        "STAGECOACH_TAG": "gpu",
        "BASE_IMAGE": COMPILER_BASE,
        "PIP_ARGS": "--no-index --find-links build/wheels",
        "COMPILER": "",
        "CREDENTIALS": str(tmp_path),
        **dict.fromkeys(("MODEL", "STAGE", "LISTEN"), "none"),
    }
    files = [part for file in FILES for part in ("--file", file)]
    assignments = [f"{name}={value}" for name, value in settings.items()]
    images.run("env", *assignments, "docker-compose", *files, "build", timeout_s=1200)
    project = ComposeProject(engine=images, file=FILES[0], name="gpu", settings=settings)
    environment = {"PYTHONPATH": "/triton", **gpu["environment"]}
    try:
        shown = project.run(
            *("run", "--rm", "--no-deps", "--entrypoint", "python3"),
            *(part for item in environment.items() for part in ("-e", "=".join(item))),
            *("-v", f"{triton}:/triton:ro", "-v", f"{SCRIPT}:/compile_kernels.py:ro"),
            *("stage", "/compile_kernels.py"),
        )
    finally:
        project.run("down", "--volumes")
    assert "for sm_86, by /cache/triton" in shown
