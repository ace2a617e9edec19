"""B1 to B7: what a broken or hostile client may send to the HTTP door, and what it answers.

Whatever comes is answered or its connection ended within a bound, never with a 5xx but 503; memory
stays flat, and a canary is the same before and after, over HTTP too.
"""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.faults.http_wire import answer, send_hostile, statuses
from tests.faults.malformed_http import HostileRequest
from tests.faults.oracle import Oracle
from tests.faults.waiting import eventually

NUM_SEEDS = 300
NUM_WARM = 2_000
"""Requests before memory is looked at, which fill pools and caches."""
NUM_SLOW = 10_000
GROWTH_BYTES = 32 << 20
NUM_GROWN_FDS = 6
NUM_STALLED = 8
STALLED_S = 80.0
"""Above the time that a request may take to arrive."""
REPOSITORY = Path(__file__).parents[2]

_BODY = json.dumps({"prompt": [5, 6, 7], "max_tokens": 24, "temperature": 0, "ignore_eos": True})
CANARY = HostileRequest(
    data=b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
    b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
    % (len(_BODY), _BODY.encode()),
    is_whole=True,
)


@pytest.fixture
async def door(oracle: Oracle) -> AsyncIterator[str]:
    """Address of the HTTP door; whatever a test sends there must leave no trace."""
    cluster, process = oracle.cluster, oracle.cluster.coordinator
    expected = await canary(cluster.http)
    yield cluster.http
    assert await canary(cluster.http) == expected
    for word in ("Traceback", "internal error", "never retrieved"):
        assert word not in process.log, process.log[-3000:]


async def canary(address: str) -> str:
    """The text of a greedy completion."""
    data = await answer(address, CANARY)
    assert statuses(data) == [200], data
    text: str = json.loads(data.partition(b"\r\n\r\n")[2])["choices"][0]["text"]
    assert text
    return text


async def send(oracle: Oracle, seeds: range) -> Counter[int]:
    """Sends hostile requests; no answer shows where files are."""
    cluster = oracle.cluster
    return await send_hostile(cluster.http, seeds, str(cluster.model), str(REPOSITORY))


async def test_b1_to_b7_hostile_requests_are_refused_typed_one_after_another(
    oracle: Oracle, door: str
) -> None:
    counts = await send(oracle, range(NUM_SEEDS))
    assert counts[400] > NUM_SEEDS // 3


@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_b1_to_b7_ten_thousand_hostile_requests_leave_no_trace(
    oracle: Oracle, door: str
) -> None:
    expected = await canary(door)
    await send(oracle, range(NUM_SLOW, NUM_SLOW + NUM_WARM))
    process = oracle.cluster.coordinator
    before = process.footprint(collected=True)
    stalled = [asyncio.create_task(stall(door)) for _ in range(NUM_STALLED)]
    counts = await send(oracle, range(NUM_SLOW))
    print(f"{NUM_SLOW} hostile requests, by status: {dict(sorted(counts.items()))}")
    assert counts[400] > NUM_SLOW // 3
    async with asyncio.timeout(STALLED_S):
        assert await asyncio.gather(*stalled) == [[408]] * NUM_STALLED

    def is_back() -> bool:
        now = process.footprint(collected=True)
        return now.num_tasks <= before.num_tasks and now.rss_bytes < before.rss_bytes + GROWTH_BYTES

    await eventually(is_back, within_s=20, what=f"back to {before}", every_s=1.0)
    after = process.footprint()
    print(f"memory from {before.rss_bytes / 1e6:.0f} MB to {after.rss_bytes / 1e6:.0f} MB")
    assert after.num_fds <= before.num_fds + NUM_GROWN_FDS
    assert await canary(door) == expected


async def stall(address: str) -> list[int]:
    """Sends a request without its end and waits; the statuses that came."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(CANARY.data[:-1])
    data = await reader.read()
    writer.close()
    return statuses(data)
