"""What pip installs: the wheel in an empty environment, used from somebody else's folder."""

import json
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).resolve().parents[2]
OURS = {"coordinator", "stage_server", "stagecoach"}
DECOYS = ("client", "config", "core", "errors", "model_files", "protos", "security", "telemetry")
"""Names that a user's own modules may have, and that this project once installed or might."""
MAX_DISTRIBUTIONS = 8

PROGRAM = """
import sys
from stagecoach import AsyncClient, Client, InvalidArgumentError, UnavailableError

with Client(sys.argv[1]) as client:
    print(client.complete([1, 2, 3], max_tokens=4).usage)
    try:
        client.complete([1, 2, 3], max_tokens=4, temperature=-1)
    except InvalidArgumentError as error:
        print(error.message)
try:
    Client("127.0.0.1:1", tls="missing.pem")
except InvalidArgumentError as error:
    print(error.message)
print(sorted(set(sys.modules) & set(sys.argv[2].split(","))))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"]
    options = ["--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)]
    subprocess.run([*command, *options, str(ROOT)], check=True)
    [path] = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def python(wheel: Path) -> Path:
    """The interpreter of an environment in which pip was asked for the wheel and nothing else."""
    folder = wheel.parent / "venv"
    venv.create(folder)
    interpreter = folder / "bin/python"
    command = [sys.executable, "-m", "pip", "--python", str(interpreter), "install", "--quiet"]
    options = ["--disable-pip-version-check", "--no-compile", "-c", str(ROOT / "constraints.txt")]
    subprocess.run([*command, *options, str(wheel)], check=True)
    return interpreter


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A coordinator of this checkout, over an emulated stage."""
    flags = "--model demo --stages 1 --engine emulated --emulate rtx-3060-12gb --grpc-port 0"
    command = [sys.executable, "-m", "coordinator.cli", "up", *flags.split(), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["grpc"]
        process.terminate()
        assert process.wait(30) == 0


def test_three_names_are_installed(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == OURS
    assert {"stagecoach/py.typed", "stagecoach/v1/generation_pb2.pyi"} <= set(names)
    assert "coordinator/doors/http/page/index.html" in names


def test_the_client_brings_few_distributions(python: Path) -> None:
    listing = [sys.executable, "-m", "pip", "--python", str(python), "list", "--format", "json"]
    done = subprocess.run(listing, check=True, capture_output=True, text=True)
    names = {entry["name"] for entry in json.loads(done.stdout)}
    assert "stagecoach-llm" in names
    assert len(names) <= MAX_DISTRIBUTIONS, names


def test_the_client_works_beside_modules_of_any_name(
    python: Path, address: str, tmp_path: Path
) -> None:
    for name in DECOYS:
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('a module of its user')")
    (tmp_path / "program.py").write_text(PROGRAM)
    done = subprocess.run(
        [python, "program.py", address, ",".join(DECOYS)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    usage, refused, missing, decoys = done.stdout.splitlines()
    assert "num_completion_tokens=4" in usage
    assert "temperature" in refused
    assert "missing.pem" in missing
    assert decoys == "[]"


@pytest.mark.parametrize("command", ["coordinator-cli", "stage-server"])
def test_a_command_says_what_it_lacks(python: Path, command: str) -> None:
    done = subprocess.run(
        [python.parent / command, "--help"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    [line] = done.stderr.splitlines()
    assert line.startswith(f"{command}: the package ")
    assert "is not installed: pip install '.[coordinator]'" in line
