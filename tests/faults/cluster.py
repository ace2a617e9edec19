"""A cluster of processes whose network goes through fault proxies."""

import json
import signal
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from stagecoach.contract.layer_range import LayerRange
from tests.faults.fault_proxy import FaultProxy
from tests.faults.server_processes import Footprint, ServerProcess
from tests.layer_ranges import split_evenly
from tests.tiny_models import NUM_LAYERS

KV_MEMORY = "1MiB"
MAX_NUM_SEQS = 16
MAX_MODEL_LEN = 1024
NUM_STAGES = 3
HANG_TIMEOUT_S = 4.0


class Stage:
    """A stage server that may die and come back at the same address.

    Args:
        model: What `--model` names.
        layers: Its layers.
        folder: For its logs and its planned fault.
        *flags: Further flags, in all its lives.
    """

    def __init__(self, model: Path, layers: LayerRange, folder: Path, *flags: str) -> None:
        self.model = model
        self.layers = layers
        self._folder = folder
        self._flags = flags
        self._plan = folder / f"fault-{layers.start}.json"
        self.address = "127.0.0.1:0"
        self.is_unusual = False
        self.process = self._start(())

    def wait_ready(self) -> None:
        """Waits until it serves."""
        self.address = str(self.process.ready_line()["address"])

    def restart(self, *flags: str) -> None:
        """Starts it again, at the same address, once the process of before has ended."""
        self.process.close()
        self.is_unusual = bool(flags)
        self.process = self._start(flags)
        self.wait_ready()

    def plan_fault(self, fault: str, **details: object) -> None:
        """Tells its next forward how to fail; see `stage_server.compute.fault_hooks`."""
        written = self._plan.with_suffix(".new")
        written.write_text(json.dumps({"fault": fault, **details}))
        written.rename(self._plan)

    @property
    def has_planned_fault(self) -> bool:
        """True until a fault that strikes once has struck."""
        return self._plan.exists()

    def forget_fault(self) -> None:
        """Takes back a planned fault, if it has not struck yet."""
        self._plan.unlink(missing_ok=True)

    def _start(self, flags: Sequence[str]) -> ServerProcess:
        arguments = [
            *("--model", str(self.model), "--layers", str(self.layers)),
            *("--listen", self.address, "--kv-memory", KV_MEMORY, "--threads", "1"),
            *("--dtype", "float32"),  # that of what is expected
            *("--max-num-seqs", str(MAX_NUM_SEQS), "--drain-grace-s", "5"),
            *("--hang-timeout-s", str(HANG_TIMEOUT_S)),
            *("--unsafe-fault-hooks", str(self._plan)),
            *self._flags,
            *flags,
        ]
        return ServerProcess("stage_server", arguments, folder=self._folder)


class Cluster:
    """Three stages and a coordinator, each a process, with a proxy before every stage.

    Args:
        model: A tiny model.
        folder: For logs.
        *flags: Further flags of the coordinator.
        stage_flags: Further flags of every stage.

    Attributes:
        address: Of the coordinator's gRPC door, the same for all its lives.
        http: Of its HTTP door, another in each life.
        baseline: What each of `processes` held when all was well; the oracle records it.
    """

    def __init__(
        self, model: Path, folder: Path, *flags: str, stage_flags: Sequence[str] = ()
    ) -> None:
        self.model = model
        self._folder = folder
        self._flags = flags
        ranges = split_evenly(NUM_LAYERS, NUM_STAGES)
        self.stages = [Stage(model, layers, folder, *stage_flags) for layers in ranges]
        self._all_stages(Stage.wait_ready)
        self.proxies = [FaultProxy(stage.address) for stage in self.stages]
        self.address = "127.0.0.1:0"
        self._is_unusual = False
        self.baseline: list[Footprint] = []
        self.coordinator = self.start_coordinator()
        self.address, self.http = self._doors()

    @property
    def processes(self) -> list[ServerProcess]:
        """The coordinator's, then the stages'."""
        return [self.coordinator, *(stage.process for stage in self.stages)]

    def start_coordinator(
        self,
        *flags: str,
        listen: str | None = None,
        environment: Mapping[str, str] | None = None,
        log: Path | None = None,
    ) -> ServerProcess:
        """Starts another coordinator of these stages; the caller waits for it and closes it."""
        arguments = [
            *("serve", "--model", str(self.model), "--listen", listen or self.address),
            *(text for proxy in self.proxies for text in ("--stage", proxy.address)),
            *("--http-listen", "127.0.0.1:0", "--drain-grace-s", "20"),
            *self._flags,
            *flags,
        ]
        return ServerProcess(
            "coordinator.cli", arguments, folder=self._folder, environment=environment, log=log
        )

    def restart_coordinator(
        self,
        *flags: str,
        environment: Mapping[str, str] | None = None,
        log: Path | None = None,
    ) -> None:
        """Starts the coordinator again, at the same address; `restore` undoes what is unusual."""
        self.coordinator.close()
        self._is_unusual = bool(flags or environment or log)
        self.coordinator = self.start_coordinator(*flags, environment=environment, log=log)
        self.address, self.http = self._doors()

    def restart_stages(self, *indices: int) -> None:
        """Starts these stages again, side by side."""
        with ThreadPoolExecutor() as pool:
            list(pool.map(Stage.restart, [self.stages[index] for index in indices]))

    def restore(self) -> None:
        """Makes whole what a fault has left broken: network, planned faults, processes."""
        for proxy in self.proxies:
            proxy.heal()
        for stage in self.stages:
            stage.forget_fault()
            if stage.process.returncode is None:
                stage.process.signal(signal.SIGCONT)
        gone = [
            index
            for index, stage in enumerate(self.stages)
            if stage.is_unusual or stage.process.returncode is not None
        ]
        self.restart_stages(*gone)
        if self._is_unusual or self.coordinator.returncode is not None:
            self.restart_coordinator()

    def close(self) -> None:
        """Ends everything, the coordinator first."""
        self.coordinator.close()
        for proxy in self.proxies:
            proxy.close()
        self._all_stages(lambda stage: stage.process.close())

    def _doors(self) -> tuple[str, str]:
        """Waits until the coordinator is ready; its addresses for gRPC and HTTP."""
        ready = self.coordinator.ready_line()
        return str(ready["grpc"]), str(ready["http"])

    def _all_stages(self, function: Callable[[Stage], None]) -> None:
        with ThreadPoolExecutor() as pool:
            list(pool.map(function, self.stages))
