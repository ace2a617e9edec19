"""Stage servers and a coordinator as child processes on this machine."""

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import islice
from tempfile import NamedTemporaryFile
from typing import NamedTuple, TypeVar

from coordinator.cli.cluster.child import Child, Process, spawn
from coordinator.cli.cluster.device_turns import OWN_CHOICE, DeviceTurns
from coordinator.cli.cluster.stage_forks import StageForks
from coordinator.cli.cluster.stage_keeper import RunningStage, StageKeeper
from coordinator.cli.shared.arguments import each
from stagecoach.contract.errors import InvalidArgumentError, StagecoachError
from stagecoach.contract.layer_range import LayerRange
from stagecoach.contract.load_progress import LoadProgress
from stagecoach.model_files import model_id_of
from stagecoach.process.load_display import Display, Entry

Server = TypeVar("Server")
"""What is known of each stage server."""

_COORDINATOR = "coordinator"
_KILL_MARGIN_S = 15.0
"""What a process gets to end besides the grace time of its own work."""

_LOAD_S = 7 * 86_400
"""Time for which the coordinator waits for stages: no limit, since those that end are seen here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPlan:
    """One model, and the stage servers to start for it."""

    model: str
    names: tuple[str, ...] = ()
    """What requests call it, the one that answers show first. None given: its own name."""
    layers: tuple[LayerRange, ...]
    """Layers of each stage, in order."""
    num_replicas: int
    """Servers of each stage."""
    emulated_gpus: tuple[str, ...] = ()
    """GPU that each stage emulates, in order; empty when they compute."""

    @property
    def num_servers(self) -> int:
        """Servers of all stages."""
        return len(self.layers) * self.num_replicas

    @property
    def title(self) -> str:
        """Name of the model, for people."""
        return self.names[0] if self.names else model_id_of(self.model)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterPlan:
    """What to start.

    Raises:
        InvalidArgumentError: Two models have a name in common.
    """

    models: tuple[ModelPlan, ...]
    """At least one."""
    grpc_port: int
    """Port of the coordinator's gRPC API; 0 takes a free one."""
    http_port: int | None
    """Port of the coordinator's HTTP API; 0 takes a free one. None: there is none."""
    stage_options: tuple[str, ...]
    """Further arguments of every stage server."""
    devices: DeviceTurns = OWN_CHOICE
    """Devices of the stage servers, by turns."""
    coordinator_options: tuple[str, ...]
    """Further arguments of the coordinator."""
    metrics_port: int | None = None
    """Metrics port of the coordinator; those of the stages follow. 0 takes free ones, None serves
    no metrics."""
    drain_grace_s: float
    """Time that running requests get when the cluster stops."""

    def __post_init__(self) -> None:
        names = [name for model in self.models for name in model.names or (model.title,)]
        for name in names:
            if names.count(name) > 1:
                raise InvalidArgumentError(
                    f"served_model_name {name!r} is of two models: give each its own",
                    field="served_model_name",
                )

    @property
    def servers(self) -> tuple["StageServer", ...]:
        """Every stage server: of one model after the other, the replicas of a stage together."""
        return tuple(
            StageServer(model, stage, replica)
            for model in self.models
            for stage in range(len(model.layers))
            for replica in range(model.num_replicas)
        )


class StageServer(NamedTuple):
    """One server of a stage in a plan."""

    model: ModelPlan
    stage: int
    replica: int

    @property
    def name(self) -> str:
        """Its name among those of its model, for people."""
        place = self.stage if self.model.num_replicas == 1 else f"{self.stage}.{self.replica}"
        return f"stage {place} (layers {self.model.layers[self.stage]})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoints:
    """A cluster that is ready."""

    grpc: str
    """Address of the coordinator."""
    http: str | None
    """Address of its HTTP API, if there is one."""
    stages: tuple[tuple[RunningStage, ...], ...]
    """The stage servers of each model."""
    pid: int
    """Process id of the coordinator."""
    metrics: str | None
    """Address of the coordinator's metrics; None when it serves none."""


class Cluster:
    """The processes of one plan. Used from one event loop; whoever starts it also stops it.

    Args:
        plan: What to start.
        relay_logs: Write what the processes log to our stderr.
    """

    def __init__(self, plan: ClusterPlan, *, relay_logs: bool) -> None:
        self._plan = plan
        self._relay_logs = relay_logs
        self._forks = StageForks()
        self._stages: list[StageKeeper] = []
        self._coordinator: Child | None = None
        self._files = ExitStack()
        """What the coordinator reads."""

    async def start(self, report: Callable[[str], None], display: Display) -> Endpoints:
        """Starts everything and waits until the coordinator serves.

        Args:
            report: Told in a line what became ready, now and later.
            display: Shows how far each process is, by its name in `names`.

        Raises:
            StagecoachError: A process ended before it was ready; says which and its last words.
        """
        for number, name in enumerate(self.names):
            keeper = StageKeeper(
                name,
                partial(self._start_stage, number),
                relay_logs=self._relay_logs,
                report=report,
            )
            self._stages.append(keeper)
            await keeper.start(on_progress=partial(_show, display, name))
        addresses = await asyncio.gather(*(keeper.listening() for keeper in self._stages))
        display.show(_COORDINATOR, Entry("starting"))
        # While the stages load, which it waits for.
        self._coordinator = Child(
            _COORDINATOR,
            await spawn(self._coordinator_arguments(addresses)),
            relay_logs=self._relay_logs,
        )
        stages, ready = await asyncio.gather(
            asyncio.gather(*(_shown_when_ready(keeper, display) for keeper in self._stages)),
            self._coordinator.ready(),
        )
        for problem in _problems(ready["models"]):
            report(problem)
        return Endpoints(
            grpc=str(ready["grpc"]),
            http=_address(ready["http"]),
            stages=tuple(self._of_each_model(stages)),
            pid=_int(ready["pid"]),
            metrics=_address(ready["metrics"]),
        )

    @property
    def names(self) -> list[str]:
        """Names of the stage servers, in order."""
        servers = self._plan.servers
        if len(self._plan.models) == 1:
            return [server.name for server in servers]
        return [f"{server.model.title}, {server.name}" for server in servers]

    async def keep(self) -> StagecoachError:
        """Starts stages again that end, until the coordinator ends on its own; says how it did."""
        assert self._coordinator is not None, "the cluster was started"
        work = [self._coordinator.ended(), *(keeper.keep() for keeper in self._stages)]
        tasks = [asyncio.create_task(one) for one in work]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            return done.pop().result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def stop(self) -> None:
        """Stops the coordinator, which drains, and then the stages; kills what does not end."""
        if self._coordinator is not None:
            await self._coordinator.stop(grace_s=self._plan.drain_grace_s + _KILL_MARGIN_S)
        await asyncio.gather(*(keeper.stop(grace_s=_KILL_MARGIN_S) for keeper in self._stages))
        await self._forks.close()
        self._files.close()

    async def _start_stage(self, number: int, listen: str) -> Process:
        return await self._forks.start(self._stage_arguments(number, listen))

    def _stage_arguments(self, number: int, listen: str) -> list[str]:
        model, stage, _ = self._plan.servers[number]
        gpus = model.emulated_gpus
        return [
            *("--model", model.model, "--layers", str(model.layers[stage])),
            *("--listen", listen, "--json", "--json-progress", "--exit-with-parent"),
            *self._plan.stage_options,
            *self._plan.devices.arguments(number),
            *(("--emulate", gpus[stage]) if gpus else ()),
            *self._metrics_arguments(1 + number),
        ]

    def _of_each_model(self, servers: Sequence[Server]) -> Iterator[tuple[Server, ...]]:
        """What belongs to the servers of each model, of what belongs to all of them."""
        rest = iter(servers)
        for model in self._plan.models:
            yield tuple(islice(rest, model.num_servers))

    def _model_arguments(self, addresses: Sequence[str]) -> list[str]:
        """The models, their stages and names, as `serve` takes them."""
        models = self._plan.models
        of_each = [
            _stage_options(own, model.num_replicas)
            for model, own in zip(models, self._of_each_model(addresses), strict=True)
        ]
        if len(models) == 1:
            names = each("--served-model-name", models[0].names)
            return ["--model", models[0].model, *each("--stage", of_each[0]), *names]
        entries = [
            {"model": model.model, "stages": stages, "served_model_name": list(model.names)}
            for model, stages in zip(models, of_each, strict=True)
        ]
        file = self._files.enter_context(NamedTemporaryFile("w", suffix=".yaml"))  # noqa: SIM115
        json.dump({"models": entries}, file)  # which is YAML
        file.flush()
        return ["--config", file.name]

    def _coordinator_arguments(self, addresses: Sequence[str]) -> list[str]:
        return [
            *("-m", "coordinator.cli", "serve", *self._model_arguments(addresses)),
            *("--listen", f"127.0.0.1:{self._plan.grpc_port}", "--json", "--exit-with-parent"),
            *self._http_arguments(),
            *("--drain-grace-s", str(self._plan.drain_grace_s)),
            *("--connect-timeout-s", str(_LOAD_S)),
            *self._plan.coordinator_options,
            *self._metrics_arguments(0),
        ]

    def _http_arguments(self) -> tuple[str, ...]:
        port = self._plan.http_port
        return ("--no-http",) if port is None else ("--http-listen", f"127.0.0.1:{port}")

    def _metrics_arguments(self, offset: int) -> tuple[str, ...]:
        """What makes a process serve metrics, on the port that many above the first."""
        port = self._plan.metrics_port
        if port is None:
            return ()
        return ("--metrics-listen", f"127.0.0.1:{port and port + offset}")


def _stage_options(addresses: Sequence[str], num_replicas: int) -> list[str]:
    """The addresses of each stage, with commas between those of its replicas."""
    starts = range(0, len(addresses), num_replicas)
    return [",".join(addresses[start : start + num_replicas]) for start in starts]


async def _shown_when_ready(keeper: StageKeeper, display: Display) -> RunningStage:
    stage = await keeper.ready()
    display.show(keeper.name, Entry("ready", is_done=True))
    return stage


def _show(display: Display, name: str, progress: LoadProgress) -> None:
    display.show(name, Entry.of(progress))


def _problems(models: object) -> Iterator[str]:
    """What a coordinator that is ready says of models that it does not serve."""
    assert isinstance(models, list)
    for model in models:
        if model["problem"] is not None:
            yield f"model {model['names'][0]} is {model['state']}: {model['problem']}"


def _address(value: object) -> str | None:
    return None if value is None else str(value)


def _int(value: object) -> int:
    assert isinstance(value, int)
    return value
