"""Does anything leak? Load for minutes, with a tenth of the clients leaving and a kill a minute.

Eight greedy streams after another run through three stage processes; a stage that was killed is
started again at once. Every finished request is compared with the undisturbed run. Prints, for the
coordinator and the stage that was never killed, what they held at the start and at the end, and
how their memory grew.
"""

import argparse
import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import linear_regression

from benchmarks.faults import NUM_STREAMS, running_cluster
from benchmarks.report import print_table
from stagecoach.client import AsyncClient
from tests.faults.cluster import NUM_STAGES, Cluster
from tests.faults.oracle import Oracle
from tests.faults.reference import Continuation
from tests.faults.server_processes import Footprint
from tests.faults.traffic import Traffic

ABORT_SHARE = 0.1
KILL_EVERY_S = 60.0
SAMPLE_EVERY_S = 5.0
WARM_SHARE = 0.25
"""Of the time, in which caches fill; memory is judged after it."""
MAX_SLOPE_MB = 1.0
"""A minute."""
SPARED = NUM_STAGES - 1
"""Stage that is never killed, so that its memory tells something."""
END_S = 120.0


@dataclass(slots=True, kw_only=True)
class Watched:
    """Memory of one process over time."""

    name: str
    minutes: list[float] = field(default_factory=list)
    memory_mb: list[float] = field(default_factory=list)

    def slope_mb(self) -> float:
        """Growth of the memory, MB a minute, once warm."""
        start = int(len(self.minutes) * WARM_SHARE)
        return linear_regression(self.minutes[start:], self.memory_mb[start:]).slope


@dataclass(slots=True, kw_only=True)
class Counts:
    """What became of the requests."""

    num_complete: int = 0
    num_left: int = 0
    num_failed: int = 0
    num_lost: int = 0
    num_kills: int = 0

    def add(self, traffic: Traffic) -> None:
        """Counts streams that have ended."""
        for stream in traffic.streams:
            if not stream.is_on_its_way:
                self.num_lost += 1
            elif stream.has_left:
                self.num_left += 1
            elif stream.is_complete:
                self.num_complete += 1
            elif stream.error is not None:
                self.num_failed += 1
            else:
                self.num_lost += 1


async def load(
    cluster: Cluster,
    client: AsyncClient,
    texts: list[Continuation],
    watched: Sequence[Watched],
    minutes: float,
) -> Counts:
    """Runs the load and samples memory between two rounds of it."""
    chance = random.Random(0)
    counts = Counts()
    started_s = time.monotonic()
    next_kill_s, next_sample_s = KILL_EVERY_S, 0.0
    while (elapsed_s := time.monotonic() - started_s) < 60 * minutes:
        if elapsed_s >= next_sample_s:
            next_sample_s = elapsed_s + SAMPLE_EVERY_S
            for one, footprint in zip(watched, footprints(cluster), strict=True):
                one.minutes.append(elapsed_s / 60)
                one.memory_mb.append(footprint.rss_bytes / 1e6)
        lengths = [chance.randrange(8, 200) for _ in texts]
        traffic = Traffic.start(
            client, texts, num_tokens=150, num_prompt_tokens=lengths.__getitem__
        )
        for stream in traffic.streams:
            if chance.random() < ABORT_SHARE:
                asyncio.get_running_loop().call_later(chance.random(), stream.leave)
        if elapsed_s >= next_kill_s:
            next_kill_s += KILL_EVERY_S
            counts.num_kills += 1
            await asyncio.sleep(0.3)  # in the middle of the streams
            victim = chance.randrange(SPARED)
            cluster.stages[victim].process.kill()
            await asyncio.to_thread(cluster.restart_stages, victim)
        await traffic.ended(END_S)
        counts.add(traffic)
    return counts


def footprints(cluster: Cluster) -> list[Footprint]:
    """Of the processes that are watched."""
    return [cluster.coordinator.footprint(), cluster.stages[SPARED].process.footprint()]


async def measure(minutes: float) -> bool:
    """Prints the tables; returns whether everything is as it should be."""
    watched = [Watched(name="coordinator"), Watched(name=f"stage {SPARED}")]
    async with running_cluster() as (cluster, client, texts):
        oracle = Oracle(cluster, client, texts)
        await oracle.record_baseline()
        before = footprints(cluster)
        counts = await load(cluster, client, texts, watched, minutes)
        await client.wait_until_ready(END_S)
        await oracle.check_canary()
        await oracle.until_balanced()
        after = footprints(cluster)
    print_table(
        f"{minutes:g} minutes, {NUM_STREAMS} streams at once, {counts.num_kills} kills",
        ["requests", "count"],
        [
            ["complete, equal to the undisturbed run", counts.num_complete],
            ["left by their client", counts.num_left],
            ["failed typed", counts.num_failed],
            ["lost", counts.num_lost],
        ],
    )
    rows = [
        [
            one.name,
            *(f"{old} -> {new}" for old, new in zip(then[:3], now[:3], strict=True)),
            f"{then.rss_bytes / 1e6:.0f} -> {now.rss_bytes / 1e6:.0f}",
            one.slope_mb(),
        ]
        for one, then, now in zip(watched, before, after, strict=True)
    ]
    print_table(
        "Held before and after; slots and blocks are all free",
        ["process", "descriptors", "threads", "tasks", "memory, MB", "MB a minute"],
        rows,
    )
    return counts.num_lost == 0 and all(one.slope_mb() < MAX_SLOPE_MB for one in watched)


def main() -> None:
    """Prints the tables; exits with 1 when a request was lost or memory grew."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=20)
    if not asyncio.run(measure(parser.parse_args().minutes)):
        raise SystemExit("a request was lost, or memory grew")


if __name__ == "__main__":
    main()
