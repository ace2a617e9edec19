"""A compose file brought up for real, as one project of an engine of the tests' own."""

import json
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.docker.docker_engine import DockerEngine

USER = 10001
"""As whom the containers run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ComposeProject:
    """One compose file, as `docker compose up` in its folder would run it."""

    engine: DockerEngine
    file: str
    name: str
    """One box may run several projects of one file."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """What the file's `.env` says."""

    def run(self, *arguments: str, timeout_s: float = 600) -> str:
        """Runs docker-compose on this project."""
        settings = [f"{name}={value}" for name, value in self.settings.items()]
        compose = ("docker-compose", "--project-name", self.name, "--file", self.file)
        return self.engine.run("env", *settings, *compose, *arguments, timeout_s=timeout_s)

    @contextmanager
    def up(self) -> Iterator[None]:
        """Starts the containers from images that are there; takes them down at the end."""
        try:
            self.run("up", "--detach", "--no-build")
            yield
        finally:
            print(self.run("logs", "--no-color"))
            self.run("down", "--volumes")

    def inspect(self, service: str, what: str) -> str:
        """What the engine knows of a container, by a template."""
        container = self._container(service)
        return self.engine.run("docker", "inspect", "--format", what, container).strip()

    def exec(self, service: str, *command: str) -> str:
        """Runs a command within a container."""
        return self.engine.run("docker", "exec", self._container(service), *command)

    def kill(self, service: str) -> None:
        """`kill -9` of a container's first process; the engine is not told."""
        os.kill(int(self.inspect(service, "{{.State.Pid}}")), signal.SIGKILL)

    def check_health(self, service: str) -> None:
        """Runs the container's own health check."""
        kind, *command = json.loads(self.inspect(service, "{{json .Config.Healthcheck.Test}}"))
        assert kind == "CMD"
        assert self.exec(service, *command).strip() == "serving"

    def check_hardened(self, service: str) -> None:
        """Checks that a container runs with nothing that it does not need."""
        status = self.exec(service, "cat", "/proc/1/status").splitlines()
        values = dict(line.split(":\t", 1) for line in status if ":\t" in line)
        assert set(values["Uid"].split()) == {str(USER)}
        assert values["NoNewPrivs"] == "1"
        for capabilities in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert int(values[capabilities], 16) == 0, capabilities
        assert self.inspect(service, "{{.HostConfig.Privileged}}") == "false"
        assert self.inspect(service, "{{.HostConfig.ReadonlyRootfs}}") == "true"
        for target, options in self._mounts(service).items():
            assert "ro" in options or target not in ("/", "/models"), f"{target} can be written"

    def _mounts(self, service: str) -> dict[str, list[str]]:
        """Options of every mount that the container's processes see, by its folder."""
        lines = [line.split() for line in self.exec(service, "cat", "/proc/1/mounts").splitlines()]
        return {target: options.split(",") for _, target, _, options, *_ in lines}

    def _container(self, service: str) -> str:
        return self.run("ps", "--quiet", service).strip()


def check_nothing_is_left(engine: DockerEngine) -> None:
    """Checks that no container, volume or network is there but what every engine has."""
    assert engine.run("docker", "ps", "--all", "--quiet") == ""
    assert engine.run("docker", "volume", "ls", "--quiet") == ""
    networks = engine.run("docker", "network", "ls", "--format", "{{.Name}}").split()
    assert sorted(networks) == ["bridge", "host", "none"]
