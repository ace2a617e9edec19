"""Stage servers and a coordinator as child processes on this machine."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from coordinator.cli.cluster.child import Child, Process, spawn
from coordinator.cli.cluster.device_turns import OWN_CHOICE, DeviceTurns
from coordinator.cli.cluster.stage_forks import StageForks
from coordinator.cli.cluster.stage_keeper import RunningStage, StageKeeper
from stagecoach.contract.errors import StagecoachError
from stagecoach.contract.layer_range import LayerRange
from stagecoach.contract.load_progress import LoadProgress
from stagecoach.process.load_display import Display, Entry

_COORDINATOR = "coordinator"
_KILL_MARGIN_S = 15.0
"""What a process gets to end besides the grace time of its own work."""

_LOAD_S = 7 * 86_400
"""Time for which the coordinator waits for stages: no limit, since those that end are seen here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterPlan:
    """What to start."""

    model: str
    layers: tuple[LayerRange, ...]
    """Layers of each stage, in order."""
    num_replicas: int
    """Servers of each stage."""
    grpc_port: int
    """Port of the coordinator's gRPC API; 0 takes a free one."""
    http_port: int | None
    """Port of the coordinator's HTTP API; 0 takes a free one. None: there is none."""
    stage_options: tuple[str, ...]
    """Further arguments of every stage server."""
    devices: DeviceTurns = OWN_CHOICE
    """Devices of the stage servers, by turns."""
    emulated_gpus: tuple[str, ...] = ()
    """GPU that each stage emulates, in order; empty when they compute."""
    coordinator_options: tuple[str, ...]
    """Further arguments of the coordinator."""
    metrics_port: int | None = None
    """Metrics port of the coordinator; those of the stages follow. 0 takes free ones, None serves
    no metrics."""
    drain_grace_s: float
    """Time that running requests get when the cluster stops."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoints:
    """A cluster that is ready."""

    grpc: str
    """Address of the coordinator."""
    http: str | None
    """Address of its HTTP API, if there is one."""
    stages: tuple[RunningStage, ...]
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

    async def start(self, report: Callable[[str], None], display: Display) -> Endpoints:
        """Starts everything and waits until the coordinator serves.

        Args:
            report: Told in a line what became ready, now and later.
            display: Shows how far each process is, by its name in `names`.

        Raises:
            StagecoachError: A process ended before it was ready; says which and its last words.
        """
        for index, layers in enumerate(self._plan.layers):
            for replica in range(self._plan.num_replicas):
                name = self.names[len(self._stages)]
                keeper = StageKeeper(
                    name,
                    partial(self._start_stage, index, replica, layers),
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
        return Endpoints(
            grpc=str(ready["grpc"]),
            http=_address(ready["http"]),
            stages=tuple(stages),
            pid=_int(ready["pid"]),
            metrics=_address(ready["metrics"]),
        )

    @property
    def names(self) -> list[str]:
        """Names of the stage servers, in order."""
        num_replicas = self._plan.num_replicas
        return [
            f"stage {index if num_replicas == 1 else f'{index}.{replica}'} (layers {layers})"
            for index, layers in enumerate(self._plan.layers)
            for replica in range(num_replicas)
        ]

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

    async def _start_stage(
        self, index: int, replica: int, layers: LayerRange, listen: str
    ) -> Process:
        return await self._forks.start(self._stage_arguments(index, replica, layers, listen))

    def _stage_arguments(
        self, index: int, replica: int, layers: LayerRange, listen: str
    ) -> list[str]:
        gpus, devices = self._plan.emulated_gpus, self._plan.devices
        server = index * self._plan.num_replicas + replica
        return [
            *("--model", self._plan.model, "--layers", str(layers)),
            *("--listen", listen, "--json", "--json-progress", "--exit-with-parent"),
            *self._plan.stage_options,
            *devices.arguments(server),
            *(("--emulate", gpus[index]) if gpus else ()),
            *self._metrics_arguments(1 + server),
        ]

    def _stage_options(self, addresses: Sequence[str]) -> list[str]:
        """The addresses of each stage, as `serve` takes them."""
        num = self._plan.num_replicas
        return [",".join(addresses[start : start + num]) for start in range(0, len(addresses), num)]

    def _coordinator_arguments(self, addresses: Sequence[str]) -> list[str]:
        return [
            *("-m", "coordinator.cli", "serve", "--model", self._plan.model),
            *(text for stage in self._stage_options(addresses) for text in ("--stage", stage)),
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


async def _shown_when_ready(keeper: StageKeeper, display: Display) -> RunningStage:
    stage = await keeper.ready()
    display.show(keeper.name, Entry("ready", is_done=True))
    return stage


def _show(display: Display, name: str, progress: LoadProgress) -> None:
    display.show(name, Entry.of(progress))


def _address(value: object) -> str | None:
    return None if value is None else str(value)


def _int(value: object) -> int:
    assert isinstance(value, int)
    return value
