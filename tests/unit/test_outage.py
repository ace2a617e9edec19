"""How long requests wait while there is no pipeline."""

import asyncio
from types import SimpleNamespace

import pytest

from coordinator.engine.outage import Outage
from stagecoach.contract.errors import UnavailableError


async def test_the_wait_ends_when_its_timer_says_so_whatever_the_clock_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An event loop's timer may fire a millisecond early; requests then waited for ever."""
    stopped_clock = SimpleNamespace(monotonic=lambda: 100.0)  # not the event loop's
    monkeypatch.setattr("coordinator.engine.outage.time", stopped_clock)
    outage = Outage(0.001)
    woken = asyncio.Event()
    assert not outage.begin(woken.set, num_requests=1)
    await woken.wait()
    assert outage.begin(woken.set, num_requests=1)
    outage.check()
    error = outage.fail("stage h:1 was lost")
    with pytest.raises(UnavailableError, match="the pipeline is down: stage h:1 was lost"):
        outage.check()
    assert "stage h:1" in error.message
    outage.clear()
    outage.check()
    assert not outage.begin(woken.set, num_requests=0)
    outage.clear()
