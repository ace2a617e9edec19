"""What a fault costs: requests that finish, fail or are lost, and the time until tokens flow again.

A cluster of three stage processes (tiny random model, float32, a TCP proxy before each) runs eight
greedy streams, something breaks, and whatever died is started again at once, as a supervisor would.
A request is lost when it did not end, or when a token differs from the undisturbed run of
transformers, unsplit. Prints one row a fault; the times include the start of a process.

Columns: requests complete, failed with a typed error, and lost; seconds until the coordinator said
that it is not ready (worst) and until every stream went on (median and worst); median milliseconds
between two tokens of a stream before the fault and after the recovery.
"""

import argparse
import asyncio
import math
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

from benchmarks.report import print_json, print_table
from stagecoach.client import AsyncClient
from tests.faults.cluster import MAX_MODEL_LEN, NUM_STAGES, Cluster
from tests.faults.fault_proxy import BLACKHOLE, Way
from tests.faults.oracle import is_ready
from tests.faults.reference import Continuation, continuations
from tests.faults.traffic import Stream, Traffic
from tests.faults.waiting import eventually
from tests.tiny_models import tiny_model

NUM_STREAMS = 8
NUM_TOKENS = 250
TOKENS_BEFORE = 20
"""Of every stream, when the fault strikes."""
END_S = 180.0
POLL_S = 0.005


@dataclass(frozen=True, slots=True, kw_only=True)
class Incident:
    """What one fault did."""

    num_complete: int
    num_failed: int
    num_lost: int
    detection_s: float | None
    """Until the coordinator said that it is not ready; None when it never did."""
    recovery_s: float | None
    """Until every stream that went on had its next token; None when none did."""
    before_ms: float
    """Median time between two tokens of a stream until the fault."""
    after_ms: float | None
    """The same from the recovery on."""


Break = Callable[[Cluster], Awaitable[None]]


def kill(*indices: int) -> Break:
    """Stages are killed and started again."""

    async def strike(cluster: Cluster) -> None:
        for index in indices:
            cluster.stages[index].process.kill()
        await asyncio.to_thread(cluster.restart_stages, *indices)

    return strike


async def stop_stage(cluster: Cluster) -> None:
    """A stage is told to stop, drains, and is started again."""
    cluster.stages[1].process.signal(signal.SIGTERM)
    await asyncio.to_thread(cluster.restart_stages, 1)


async def rolling_restart(cluster: Cluster) -> None:
    """Every stage in turn is told to stop, drains, and is started again."""
    async with AsyncClient(cluster.address) as client:
        for index, stage in enumerate(cluster.stages):
            stage.process.signal(signal.SIGTERM)
            await asyncio.to_thread(cluster.restart_stages, index)
            await client.wait_until_ready(END_S)


async def kill_coordinator(cluster: Cluster) -> None:
    """The coordinator is killed and started again."""
    cluster.coordinator.kill()
    await asyncio.to_thread(cluster.restart_coordinator)


async def freeze(cluster: Cluster) -> None:
    """A stage stands still until it is given up."""
    process = cluster.stages[1].process
    num_before = _num_losses(cluster)
    process.signal(signal.SIGSTOP)
    await _until_given_up(cluster, num_before)
    process.signal(signal.SIGCONT)


async def blackhole(cluster: Cluster) -> None:
    """The network to a stage swallows everything until the stage is given up."""
    num_before = _num_losses(cluster)
    cluster.proxies[1].become(BLACKHOLE)
    await _until_given_up(cluster, num_before)
    cluster.proxies[1].heal()


async def reset(cluster: Cluster) -> None:
    """A connection is reset in the middle of a frame."""
    cluster.proxies[1].reset_after(1000, Way.DOWN)


def _num_losses(cluster: Cluster) -> int:
    return cluster.coordinator.log.count("stage lost")


async def _until_given_up(cluster: Cluster, num_before: int) -> None:
    def is_given_up() -> bool:
        return _num_losses(cluster) > num_before

    await eventually(is_given_up, within_s=END_S, what="the stage is given up", every_s=0.1)


FAULTS: tuple[tuple[str, Break], ...] = (
    ("kill two stages", kill(0, 2)),
    ("stop a stage", stop_stage),
    ("rolling restart", rolling_restart),
    ("reset mid-frame", reset),
    ("freeze a stage", freeze),
    ("blackhole", blackhole),
    ("kill coordinator", kill_coordinator),
)


@asynccontextmanager
async def running_cluster() -> AsyncIterator[tuple[Cluster, AsyncClient, list[Continuation]]]:
    """A cluster, a client of it, and what its model generates."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = tiny_model("llama", folder, max_position_embeddings=MAX_MODEL_LEN)
        texts = continuations(model, num_tokens=400, count=NUM_STREAMS)
        cluster = await asyncio.to_thread(Cluster, model, folder)
        try:
            async with AsyncClient(cluster.address) as client:
                yield cluster, client, texts
        finally:
            await asyncio.to_thread(cluster.close)


async def strike(
    cluster: Cluster, client: AsyncClient, texts: Sequence[Continuation], fault: Break
) -> Incident:
    """Breaks something under eight streams and waits until they have ended."""
    await client.wait_until_ready(END_S)
    traffic = Traffic.start(client, texts, num_tokens=NUM_TOKENS)
    await traffic.until_each_has(TOKENS_BEFORE)
    struck_s = time.monotonic()
    detecting = asyncio.create_task(_detection_s(client, struck_s))
    await fault(cluster)
    await traffic.ended(END_S)
    if not detecting.done():
        detecting.cancel()
    detected = (await asyncio.gather(detecting, return_exceptions=True))[0]
    detection_s = detected if isinstance(detected, float) else None
    return incident(traffic.streams, struck_s, detection_s)


async def _detection_s(client: AsyncClient, struck_s: float) -> float:
    while True:
        if not await is_ready(client):
            return time.monotonic() - struck_s
        await asyncio.sleep(POLL_S)


def incident(streams: Sequence[Stream], struck_s: float, detection_s: float | None) -> Incident:
    """Counts what became of the streams."""
    failed = [stream for stream in streams if stream.error is not None and stream.is_on_its_way]
    num_complete = sum(stream.is_complete and stream.num_ends == 1 for stream in streams)
    of_streams = [pauses(stream, struck_s) for stream in streams]
    back_s = [max(one)[1] for one in of_streams if one]  # the longest is the outage
    recovered_s = max(back_s, default=None)
    return Incident(
        num_complete=num_complete,
        num_failed=len(failed),
        num_lost=len(streams) - num_complete - len(failed),
        detection_s=detection_s,
        recovery_s=None if recovered_s is None else recovered_s - struck_s,
        before_ms=_latency_ms(streams, -math.inf, struck_s) or math.nan,
        after_ms=None if recovered_s is None else _latency_ms(streams, recovered_s, math.inf),
    )


def pauses(stream: Stream, struck_s: float) -> list[tuple[float, float]]:
    """Length and end of every pause of a stream that ended after the fault."""
    arrivals_s = stream.arrivals_s
    return [(later - earlier, later) for earlier, later in pairwise(arrivals_s) if later > struck_s]


def _latency_ms(streams: Sequence[Stream], from_s: float, to_s: float) -> float | None:
    """Median time between two tokens of a stream that both came within an interval."""
    gaps = [
        1000 * (later - earlier)
        for stream in streams
        for earlier, later in pairwise(stream.arrivals_s)
        if from_s <= earlier and later <= to_s
    ]
    return median(gaps) if gaps else None


def row(name: str, incidents: Sequence[Incident]) -> list[object]:
    """One row of the table: sums and medians, and the worst of the times in which to be seen."""
    return [
        name if len(incidents) == 1 else f"{name}, {len(incidents)} times",
        sum(one.num_complete for one in incidents),
        sum(one.num_failed for one in incidents),
        sum(one.num_lost for one in incidents),
        _worst(one.detection_s for one in incidents),
        _median(one.recovery_s for one in incidents),
        _worst(one.recovery_s for one in incidents),
        _median(one.before_ms for one in incidents),
        _median(one.after_ms for one in incidents),
    ]


COLUMNS = (
    "fault",
    "complete",
    "failed",
    "lost",
    "seen, s",
    "back, s",
    "worst",
    "ms/token",
    "after",
)


def _median(values: Iterable[float | None]) -> float | str:
    known = [value for value in values if value is not None]
    return median(known) if known else "-"


def _worst(values: Iterable[float | None]) -> float | str:
    known = [value for value in values if value is not None]
    return max(known) if known else "-"


async def measure(repeats: int) -> list[list[object]]:
    """Strikes with every fault; kills each stage in turn so many times."""
    rows = []
    async with running_cluster() as (cluster, client, texts):
        kills: list[list[Incident]] = [[] for _ in range(NUM_STAGES)]
        for turn in range(repeats):
            index = turn % NUM_STAGES
            kills[index].append(await strike(cluster, client, texts, kill(index)))
        for index, incidents in enumerate(kills):
            if incidents:
                rows.append(row(f"kill stage {index}", incidents))
        for name, fault in FAULTS:
            rows.append(row(name, [await strike(cluster, client, texts, fault)]))
            cluster.restore()
    return rows


def main() -> None:
    """Prints the table; exits with 1 when a request was lost."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=30, help="kills, of each stage in turn")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    rows = asyncio.run(measure(options.repeats))
    if options.json:
        print_json({"columns": COLUMNS, "rows": rows})
    else:
        print_table(f"Recovery, {NUM_STREAMS} greedy streams, three stages", COLUMNS, rows)
    if any(row[3] for row in rows):
        raise SystemExit("requests were lost")


if __name__ == "__main__":
    main()
