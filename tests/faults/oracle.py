"""The oracle I1 to I7: what must be true after every fault, as one object.

I1 each accepted request ends exactly once, within its bound. I2 what was streamed is a prefix of
the undisturbed greedy run, or all of it. I3 slots, blocks, descriptors, tasks, threads and memory
are back at the baseline, on the coordinator and on every stage. I4 readiness is on again. I5 the
next request equals the reference. I6 errors are typed and show no traceback and no path. I7 every
process that was started is ended by its owner, and its port can be bound again.
"""

import asyncio
import re
import socket
from collections.abc import Sequence

import grpc.aio

from stagecoach.client import AsyncClient, CoordinatorStatus
from stagecoach.contract.errors import (
    DeadlineExceededError,
    InternalError,
    StagecoachError,
    UnavailableError,
)
from stagecoach.v1 import stage_pb2, stage_pb2_grpc
from tests.faults.cluster import Cluster
from tests.faults.reference import Continuation
from tests.faults.server_processes import Footprint, is_running
from tests.faults.traffic import Traffic
from tests.faults.waiting import eventually

DEATH_SEEN_S = 1.0
"""Bound for the death of a stage's process."""
STEP_DEADLINE_S = 45.0
"""Bound for a stage that is frozen, cut off or hung while it has work."""
KEEPALIVE_BOUND_S = 16.0
"""Bound for the same while it has none, and for a status that was asked for just before."""
RECOVERY_S = 240.0
"""For streams to end once nothing is broken any more; restarts on a busy machine included."""
STATUS_TIMEOUT_S = 10.0
SETTLE_S = 20.0
"""Until what was recorded before a fault must hold again, once nothing is broken any more."""
SLACK = Footprint(num_fds=6, num_threads=8, num_tasks=0, rss_bytes=48 << 20, num_sandboxed=96)
"""gRPC keeps a few descriptors and threads that come and go; an asyncio task has an owner. Up to
64 compiled grammars are kept, each a process, and the processes of the pools."""
CANARY_TOKENS = 24

_LEAKED = re.compile(r"Traceback|\.py\b|(?:/[\w.-]+){2,}")


class Oracle:
    """Judges one cluster. For one event loop.

    Args:
        cluster: What is going to break.
        client: Of its coordinator.
        texts: What its model generates.
    """

    def __init__(self, cluster: Cluster, client: AsyncClient, texts: list[Continuation]) -> None:
        self.cluster = cluster
        self.client = client
        self.texts = texts

    async def record_baseline(self) -> None:
        """Remembers what every process holds when nothing runs, the first time that all is well.

        Whatever comes later is compared with that, so that small leaks add up.
        """
        await self.check_canary()
        await self.until_balanced()
        if not self.cluster.baseline:
            self.cluster.baseline = [process.footprint() for process in self.cluster.processes]

    async def check_whole(self, *, within_s: float = SETTLE_S) -> None:
        """Asserts I3, I4 and I5."""
        await self.client.wait_until_ready(within_s)
        await self.check_canary()
        await self.until_balanced(within_s)
        await self._until_footprints_are_back(within_s)

    def check_streams(
        self, traffic: Traffic, *, may_fail_with: tuple[type[StagecoachError], ...] = ()
    ) -> None:
        """Asserts I1, I2 and I6 of streams that have ended.

        Args:
            traffic: The streams.
            may_fail_with: Errors that the fault entitles a request to; by default it must finish.
        """
        for index, stream in enumerate(traffic.streams):
            got = stream.token_ids
            assert stream.is_on_its_way, f"stream {index} is not a prefix"
            if stream.has_left:
                continue
            assert stream.num_ends == 1
            if stream.error is None:
                assert len(got) == stream.num_tokens, f"stream {index} ended early"
            else:
                assert isinstance(stream.error, may_fail_with), repr(stream.error)
                check_error(stream.error)

    async def check_canary(self) -> None:
        """Asserts that a request answers as the reference does (I5)."""
        text = self.texts[0]
        done = await self.client.complete(
            text.prompt(40), max_tokens=CANARY_TOKENS, ignore_eos=True, timeout_s=30
        )
        assert len(done.token_ids) == CANARY_TOKENS
        assert text.goes_on_with(40, tuple(done.token_ids))

    async def not_ready_within(self, bound_s: float) -> None:
        """Asserts that the coordinator says so within the bound (I4)."""

        async def is_off() -> bool:
            return not await self.is_ready()

        await eventually(is_off, within_s=bound_s, what="readiness turns off")

    async def is_ready(self) -> bool:
        """What the coordinator says of itself; False when nobody is there to ask.

        An answer that is late says nothing: status waits for every stage to say what it is.
        """
        return await is_ready(self.client)

    async def until_balanced(self, within_s: float = SETTLE_S) -> None:
        """Waits until no request is left, and stages hold the prefix cache and no more (I3)."""

        async def is_balanced() -> bool:
            return _is_balanced(await self.client.status(timeout_s=within_s))

        await eventually(is_balanced, within_s=within_s, what="slots and blocks are free")

    async def _until_footprints_are_back(self, within_s: float) -> None:
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + within_s
        grown = self._grown(collected=False)
        while grown:
            assert loop.time() < deadline_s, "; ".join(grown)
            await asyncio.sleep(0.1)
            grown = self._grown(collected=True)

    def _grown(self, *, collected: bool) -> list[str]:
        """What some process holds above its baseline."""
        assert self.cluster.baseline, "record_baseline comes first"
        grown = []
        for process, before in zip(self.cluster.processes, self.cluster.baseline, strict=True):
            now = process.footprint(collected=collected)
            grown += [
                f"process {process.pid}: {name} was {old}, is {new}"
                for name, old, new, slack in zip(now._fields, before, now, SLACK, strict=True)
                if new > old + slack
            ]
        return grown


async def is_ready(client: AsyncClient) -> bool:
    """What a coordinator says of itself; False when nobody is there to ask."""
    while True:
        try:
            return (await client.status(timeout_s=STATUS_TIMEOUT_S)).ready
        except DeadlineExceededError:
            continue
        except UnavailableError:
            return False


def check_error(error: StagecoachError) -> None:
    """Asserts I6: typed, and nothing in it that is our machine's own business."""
    assert type(error) is not StagecoachError
    assert error.message
    assert "\n" not in error.message
    found = _LEAKED.search(error.message)
    assert found is None, f"{type(error).__name__} shows {found and found[0]!r}: {error.message}"
    if isinstance(error, InternalError):
        assert "unexpected" not in error.message.lower()


def check_ended(pids: Sequence[int], addresses: Sequence[str]) -> None:
    """Asserts I7 of processes that should be gone."""
    assert not [pid for pid in pids if is_running(pid)]
    for address in addresses:
        host, _, port = address.rpartition(":")
        with socket.create_server((host, int(port))):  # raises when it is taken
            pass


async def stage_info(address: str) -> stage_pb2.GetInfoResponse:
    """Asks a stage itself, past its coordinator."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub = stage_pb2_grpc.StageServiceStub(channel)
        return await stub.GetInfo(stage_pb2.GetInfoRequest(), timeout=10)


def _is_balanced(status: CoordinatorStatus) -> bool:
    return (
        status.ready
        and status.num_running == status.num_waiting == 0
        and status.num_free_kv_blocks == status.num_kv_blocks
        and all(
            stage.num_kv_blocks - stage.num_free_kv_blocks == status.num_cached_kv_blocks
            for stage in status.stages
        )
    )
