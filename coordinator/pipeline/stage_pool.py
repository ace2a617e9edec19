"""All servers of all stages: keeps each connected, and forms pipelines of those that are.

A stage may have several servers, which are replicas of each other. A pipeline takes one server of
every stage, so there are as many pipelines as the stage with the fewest servers has servers; the
other servers are spare. When a server is lost, its pipeline ends, and the remaining servers of that
pipeline are free for the next one.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from coordinator.core.observation import StageFigures, StageServerFigures
from coordinator.pipeline.forward_stream import Loss
from coordinator.pipeline.link_config import LinkConfig
from coordinator.pipeline.pipeline import Pipeline
from coordinator.pipeline.replica import Replica, check_fits, narrowest
from coordinator.pipeline.stage_link import StageLink
from coordinator.pipeline.topology import Topology
from coordinator.pipeline.weights import agreed, with_weights
from stagecoach.contract.cluster_status import StageStatus
from stagecoach.contract.errors import (
    DeadlineExceededError,
    LoadingError,
    StagecoachError,
    UnavailableError,
)
from stagecoach.contract.stage_info import StageInfo
from stagecoach.security.tls_files import TlsFiles

STATUS_TIMEOUT_S = 1.0
"""Time limit for what a stage says of itself to operators."""

STEADY_S = 5.0
"""A link that was up for so long is tried again at once when it goes down."""

_RETRY_FIRST_S, _RETRY_MAX_S = 0.1, 2.0
_LOADING_POLL_S = 0.25
"""Time between two questions to a stage that loads, for its progress to be seen."""

OnStage = Callable[[str, StagecoachError | None], None]
"""Told the address of a stage server and why it does not serve; None when it does."""


def ignore_stage(_address: str, _error: StagecoachError | None) -> None:
    """Ignores how a stage answers, for callers who only want to know when all serve."""


_log = logging.getLogger(__name__)


class StagePool:
    """The stages of one model. Used from one event loop.

    Args:
        stages: For each stage, HOST:PORT of all its servers; stages in any order.
        coordinator_id: Identity of this coordinator process.
        config: Deadlines of the links.
        tls: TLS files of the links; None: they speak plain text.
    """

    def __init__(
        self,
        stages: Sequence[Sequence[str]],
        *,
        coordinator_id: str,
        config: LinkConfig,
        tls: TlsFiles | None = None,
    ) -> None:
        self._stages = [
            [
                Replica(
                    link=StageLink(
                        address,
                        coordinator_id=coordinator_id,
                        config=config,
                        on_lost=self._link_lost,
                        tls=tls,
                    )
                )
                for address in addresses
            ]
            for addresses in stages
        ]
        self._expected: list[StageInfo] = []
        self._keepers: list[asyncio.Task[None]] = []
        self._listener: Callable[[], None] | None = None
        self._epoch = 0

    @property
    def max_num_pipelines(self) -> int:
        """Pipelines that there are when every server is up."""
        return min(map(len, self._stages))

    @property
    def is_hopeless(self) -> bool:
        """True when no server of some stage can ever be that stage, so that an operator must act.

        Each of them answers, but with other layers or another model than the stage had at first.
        """
        return any(all(one.is_misfit for one in stage) for stage in self._stages)

    @property
    def problem(self) -> str:
        """Says in one line, for people, why no pipeline can be formed.

        For each stage without a connected server it has what is wrong with the first one; empty
        when every stage has one.
        """
        missing = (stage[0] for stage in self._stages if not any(one.link.is_open for one in stage))
        return "; ".join(
            one.problem or f"stage {one.address} is being connected" for one in missing
        )

    async def connect(self, timeout_s: float, on_stage: OnStage = ignore_stage) -> Topology:
        """Waits for every server, checks that they make one model, and opens all streams.

        A server that is not there in time is done without if its stage has another.

        Args:
            timeout_s: Until every server must serve.
            on_stage: Told how each server answers, again and again until it serves.

        Returns:
            The stages, each with what all its servers can hold.

        Raises:
            UnavailableError: No server of a stage was serving within `timeout_s`.
            UnauthenticatedError: One side does not take the other's certificate.
            IncompatibleError: The stages do not fit together; says which and why.
        """
        deadline_s = time.monotonic() + timeout_s
        await asyncio.gather(*(self._wait_for(one, deadline_s, on_stage) for one in self._replicas))
        for stage in self._stages:
            stage.sort(key=lambda one: one.info is None)
            if stage[0].info is None:
                raise UnavailableError(stage[0].problem)
        self._stages.sort(key=lambda stage: _info(stage[0]).layers)
        topology = Topology.of(
            [(stage[0].address, narrowest(_infos(stage))) for stage in self._stages]
        )
        topology = self._with_weights(topology)
        if unequal := topology.unequal_forms:
            _log.warning("stages keep numbers in unequal formats", extra=unequal)
        self._expected = list(topology.infos)
        for index, stage in enumerate(self._stages):
            for replica in stage:
                replica.stage_index = index
                if replica.info is None:
                    facts = {"stage": replica.address, "error": replica.problem}
                    _log.warning("going on without a server", extra=facts)
                else:
                    check_fits(replica.address, topology.infos[index], replica.info)
                    await self._open(replica, replica.info)
        return topology

    def _with_weights(self, topology: Topology) -> Topology:
        """Checks that all servers, and not only the first of each stage, hold one model's weights.

        Raises:
            IncompatibleError: They do not.
        """
        servers = [(one.address, one.info) for one in self._replicas if one.info is not None]
        weights = agreed(servers)
        unknown = [
            address
            for address, info in servers
            if not (info.weight_digests or info.weights_revision or info.emulated)
        ]
        if unknown:
            facts = {"stages": ", ".join(unknown)}
            _log.warning("stages do not say which weights they hold", extra=facts)
        infos = tuple(with_weights(info, weights) for info in topology.infos)
        return replace(topology, infos=infos)

    def start(self, listener: Callable[[], None]) -> None:
        """Keeps every server connected from now on.

        Args:
            listener: Called each time that a pipeline ended, that `form` may have more to do, or
                that a server turned out to be another one.
        """
        self._listener = listener
        for replica in self._replicas:
            task = asyncio.create_task(self._keep(replica), name=f"keeper {replica.address}")
            task.add_done_callback(lambda _: listener())
            self._keepers.append(task)

    def form(self) -> list[Pipeline]:
        """Forms all the pipelines that can be formed of servers that are up and not in one."""
        for task in self._keepers:
            if task.done():  # only a bug ends it
                assert not task.cancelled(), f"{task.get_name()} was cancelled"
                task.result()
        formed: list[Pipeline] = []
        while chosen := self._spare():
            used = {one.pipeline.index for one in self._replicas if one.pipeline is not None}
            last = chosen[-1].info
            assert last is not None, "a server that is up has said what it is"
            pipeline = Pipeline(
                next(i for i in range(len(used) + 1) if i not in used),
                [replica.link for replica in chosen],
                vocab_size=self._expected[-1].vocab_size,
                hidden_size=self._expected[-1].hidden_size,
                adds_noise=last.adds_noise,
            )
            for replica in chosen:
                replica.pipeline = pipeline
            formed.append(pipeline)
        return formed

    def stage_figures(self) -> tuple[StageFigures, ...]:
        """What is known of every server, by stage, without asking it. Any thread."""
        return tuple(
            tuple(
                StageServerFigures(one.address, one.info, one.link.is_open, one.link.num_losses)
                for one in stage
            )
            for stage in self._stages
        )

    async def statuses(self) -> tuple[StageStatus, ...]:
        """Asks every server what it is; of one that does not answer, what it said last."""
        return tuple(await asyncio.gather(*map(self._status, self._replicas)))

    async def close(self) -> None:
        """Ends all streams, which frees every slot on every stage."""
        for task in self._keepers:
            task.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        await asyncio.gather(*(replica.link.close() for replica in self._replicas))

    @property
    def _replicas(self) -> list[Replica]:
        return [replica for stage in self._stages for replica in stage]

    def _spare(self) -> list[Replica]:
        """One server of every stage that is up and not in a pipeline; empty when one is lacking."""
        spare = [
            next((one for one in stage if one.link.is_open and one.pipeline is None), None)
            for stage in self._stages
        ]
        chosen = [replica for replica in spare if replica is not None]
        return chosen if len(chosen) == len(spare) else []

    def _link_lost(self, link: StageLink, loss: Loss) -> None:
        replica = next(one for one in self._replicas if one.link is link)
        replica.is_lost = True
        replica.problem = f"stage {link.address} was lost"
        replica.changed.set()
        pipeline = replica.pipeline
        if pipeline is not None:
            pipeline.lose(loss)
            for one in self._replicas:
                if one.pipeline is pipeline:
                    one.pipeline = None
                    one.changed.set()
        if self._listener is not None:
            self._listener()

    async def _keep(self, replica: Replica) -> None:
        """Connects one server whenever it is not connected, with growing pauses."""
        link, pause_s = replica.link, _RETRY_FIRST_S
        while True:
            opened_s = time.monotonic()
            while link.is_open:
                replica.changed.clear()
                await replica.changed.wait()
            if time.monotonic() - opened_s > STEADY_S:
                pause_s = _RETRY_FIRST_S
            elif replica.is_lost:  # a link that flaps, or was never up
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _RETRY_MAX_S)
            while not link.is_open:
                try:
                    found = await replica.identify(self._expected[replica.stage_index])
                    await self._open(replica, found)
                except StagecoachError as error:
                    self._note_problem(replica, error)
                    await asyncio.sleep(pause_s)
                    pause_s = min(2 * pause_s, _RETRY_MAX_S)
            assert self._listener is not None, "it was started"
            self._listener()

    def _note_problem(self, replica: Replica, error: StagecoachError) -> None:
        is_new = replica.problem != error.message
        replica.problem = error.message
        replica.is_lost = True
        if is_new:
            facts = {"stage": replica.address, "error": error.message}
            _log.warning("stage cannot be connected", extra=facts)
            if replica.is_misfit and self._listener is not None:
                self._listener()

    async def _open(self, replica: Replica, info: StageInfo) -> None:
        self._epoch = max(self._epoch + 1, time.time_ns())
        await replica.link.open(info, self._epoch)
        replica.info = info
        replica.is_lost = False
        replica.problem = ""
        facts = {"stage": replica.address, "layers": str(info.layers), "device": info.device}
        _log.info("stage connected", extra=facts)

    async def _wait_for(self, replica: Replica, deadline_s: float, on_stage: OnStage) -> None:
        """Asks a server what it is until it answers, with growing pauses, or leaves `info` unset.

        Raises:
            UnauthenticatedError: One side does not take the other's certificate.
            IncompatibleError: It speaks another version of the protocol.
        """
        pause_s = _RETRY_FIRST_S
        while True:
            try:
                replica.info = await replica.link.get_info()
                on_stage(replica.address, None)
                return
            except (UnavailableError, DeadlineExceededError) as error:
                on_stage(replica.address, error)
                replica.problem = error.message
                if isinstance(error, LoadingError):
                    pause_s = min(pause_s, _LOADING_POLL_S)
                if time.monotonic() + pause_s > deadline_s:
                    return
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _RETRY_MAX_S)

    async def _status(self, replica: Replica) -> StageStatus:
        info = replica.info
        if replica.link.is_open:
            try:
                info = await replica.link.get_info(STATUS_TIMEOUT_S)
            except StagecoachError as error:
                facts = {"stage": replica.address, "error": error.message}
                _log.info("stage does not say what it is", extra=facts)
        return StageStatus(
            index=replica.stage_index,
            address=replica.address,
            state=replica.state,
            info=info,
            pipeline=None if replica.pipeline is None else replica.pipeline.index,
        )


def _info(replica: Replica) -> StageInfo:
    assert replica.info is not None, "it said what it is"
    return replica.info


def _infos(stage: Sequence[Replica]) -> list[StageInfo]:
    return [replica.info for replica in stage if replica.info is not None]
