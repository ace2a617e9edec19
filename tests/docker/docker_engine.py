"""A Docker engine of the tests' own, in a network of its own, gone with all it made at the end.

Its bridge, addresses and firewall rules live in a network namespace, so that the machine's own
network stays as it is. `nsenter` rather than `ip netns exec`: the latter hides the control groups.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
NEEDED = ("dockerd", "docker", "docker-compose", "debootstrap", "nsenter", "ip")
START_S = 60.0
BASE_IMAGE = "stagecoach-base:test"


class EngineAbsentError(Exception):
    """No engine can be started here; says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DockerEngine:
    """A running engine."""

    namespace: str
    """Of its network."""
    environment: Mapping[str, str]
    """What its clients need."""

    def run(self, *command: str, timeout_s: float = 600) -> str:
        """Runs a command that talks to the engine, and returns what it prints.

        Raises:
            AssertionError: It fails; with all that it printed.
        """
        return _run(command, self.environment, timeout_s)

    def inside(self, *command: str, timeout_s: float = 120) -> str:
        """Runs a command in the engine's network, where published ports are on loopback."""
        return self.run(
            "nsenter", f"--net=/run/netns/{self.namespace}", *command, timeout_s=timeout_s
        )

    def add_address(self, address: str) -> None:
        """Gives the engine's network an address that is not loopback, as a box has one."""
        self.run("ip", "-n", self.namespace, "address", "add", f"{address}/32", "dev", "lo")


@contextmanager
def docker_engine(folder: Path) -> Iterator[DockerEngine]:
    """Starts an engine that keeps everything in `folder`; stops it and removes its network.

    Raises:
        EngineAbsentError: It cannot be started here.
    """
    if os.getuid() != 0:
        raise EngineAbsentError("a Docker engine and its network need root")
    if missing := [name for name in NEEDED if shutil.which(name) is None]:
        raise EngineAbsentError(f"not installed: {', '.join(missing)}")
    namespace = f"stagecoach-docker-{os.getpid()}"
    address = f"unix://{folder}/docker.sock"
    environment = {
        **os.environ,
        "DOCKER_HOST": address,
        "DOCKER_BUILDKIT": "0",  # what every engine has, whatever plugins are installed
        "COMPOSE_DOCKER_CLI_BUILD": "0",
    }
    _run(("ip", "netns", "add", namespace), environment, 10)
    try:
        _run(("ip", "-n", namespace, "link", "set", "lo", "up"), environment, 10)
        with (folder / "dockerd.log").open("wb") as log:
            daemon = subprocess.Popen(
                [
                    *("nsenter", f"--net=/run/netns/{namespace}", "dockerd"),
                    *("--data-root", str(folder / "data"), "--exec-root", str(folder / "exec")),
                    *("--pidfile", str(folder / "dockerd.pid"), "--host", address),
                ],
                stdout=log,
                stderr=log,
            )
        try:
            _wait_until_up(daemon, folder / "dockerd.log", environment)
            yield DockerEngine(namespace=namespace, environment=environment)
        finally:
            daemon.terminate()
            daemon.wait(60)
            _unmount_all_under(folder)
    finally:
        _run(("ip", "netns", "delete", namespace), environment, 10)


def make_base_image(engine: DockerEngine, folder: Path, name: str, *packages: str) -> None:
    """Makes a Debian with Python from packages, for where no image registry is reached."""
    root = folder / "base"
    included = ",".join(("python3", "python3-venv", "ca-certificates", *packages))
    engine.run(
        *("debootstrap", "--variant=minbase", f"--include={included}", "bookworm", str(root))
    )
    engine.run("sh", "-c", f"tar -C {root} -c . | docker import - {name}")
    shutil.rmtree(root)


def _wait_until_up(
    daemon: subprocess.Popen[bytes], log: Path, environment: Mapping[str, str]
) -> None:
    deadline_s = time.monotonic() + START_S
    while subprocess.run(["docker", "info"], env=environment, capture_output=True).returncode:
        if daemon.poll() is not None or time.monotonic() > deadline_s:
            lines = log.read_text(errors="replace").splitlines() or ["it says nothing"]
            raise EngineAbsentError(f"dockerd does not run here: {lines[-1]}")
        time.sleep(0.2)


def _unmount_all_under(folder: Path) -> None:
    """A daemon leaves its network namespace mounted, which keeps the folder from being removed."""
    for mount in psutil.disk_partitions(all=True):
        if Path(mount.mountpoint).is_relative_to(folder):
            subprocess.run(["umount", mount.mountpoint], check=True)


def _run(command: Sequence[str], environment: Mapping[str, str], timeout_s: float) -> str:
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout_s
    )
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
    return done.stdout
