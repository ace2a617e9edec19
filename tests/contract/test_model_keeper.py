"""The life of one model: opened, served, and opened again, unless it is the only one."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from coordinator import model_keeper
from coordinator.config import ClusterConfig, parse_stages
from coordinator.core.catalog import Catalog, CatalogModel
from coordinator.doors.access.caller_shares import CallerShares
from coordinator.model_keeper import ModelKeeper
from stagecoach.contract.errors import IncompatibleError, StagecoachError, UnavailableError
from stagecoach.process.load_display import Lines
from tests.contract.echo_engine import EchoEngine

DEADLINE_S = 20.0


class LivingEngine(EchoEngine):
    """An engine that runs until it is closed, or a bug stops it."""

    def __init__(self) -> None:
        super().__init__(names=("m",))
        self.stopped: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def read_vocabulary(self) -> None:
        pass

    async def wait_stopped(self) -> None:
        await asyncio.shield(self.stopped)

    async def close(self, grace_s: float) -> None:
        await super().close(grace_s)
        self.is_ready = False
        if not self.stopped.done():
            self.stopped.set_result(None)


Attempt = LivingEngine | StagecoachError


class Life:
    """A keeper, whose tries to open its model end as they are told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, is_only: bool) -> None:
        self.attempts: asyncio.Queue[Attempt] = asyncio.Queue()
        self.engines: list[Any] = []
        self.listed: CatalogModel = Catalog().add(("m",))
        self.keeper = ModelKeeper(
            ClusterConfig(model="demo", stages=parse_stages(["h:1", "h:2,h:3"])),
            self.listed,
            is_only=is_only,
            shares=CallerShares(max_requests=None),
            on_engine=self.engines.append,
            observers=(),
        )

        async def open_engine(*_: object) -> LivingEngine:
            attempt = await self.attempts.get()
            if isinstance(attempt, StagecoachError):
                raise attempt
            return attempt

        monkeypatch.setattr(model_keeper, "open_engine", open_engine)
        monkeypatch.setattr(model_keeper, "FIRST_PAUSE_S", 0.0)
        self.running = asyncio.create_task(self.keeper.run(Lines(lambda _: None)))

    async def when(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while True:
                if condition():
                    return
                await asyncio.sleep(0)

    async def then(self, *attempts: Attempt, state: str) -> None:
        """Has the next tries end so, and waits for the state that comes of it."""
        for attempt in attempts:
            self.attempts.put_nowait(attempt)
        await self.when(lambda: self.attempts.empty() and self.listed.state == state)


async def test_one_of_several_is_tried_again_whatever_was_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    life = Life(monkeypatch, is_only=False)
    await life.then(IncompatibleError("the layers do not fit"), state="failed")
    await life.when(life.keeper.settled.is_set)
    assert life.listed.problem == "the layers do not fit"
    status = await life.keeper.status()
    assert (status.failed, status.problem) == (True, "the layers do not fit")
    assert [(stage.index, stage.address) for stage in status.stages] == [
        (0, "h:1"),
        (1, "h:2"),
        (1, "h:3"),
    ]
    await life.then(UnavailableError("h:1 is away"), state="loading")
    assert life.listed.problem == "h:1 is away"
    assert not (await life.keeper.status()).failed
    engine = LivingEngine()
    await life.then(engine, state="serving")
    await life.keeper.wait_ready(ready=True)
    assert life.engines == [engine]
    await life.keeper.close(0.0)
    await life.running
    assert engine.is_closed
    assert not life.keeper.is_ready


async def test_an_engine_that_a_bug_has_stopped_is_replaced(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    life = Life(monkeypatch, is_only=False)
    first, second = LivingEngine(), LivingEngine()
    await life.then(first, state="serving")
    first.stopped.set_exception(ZeroDivisionError("secret"))
    await life.when(lambda: life.listed.state == "failed")
    assert life.listed.problem == "its engine stopped; see the coordinator's log"
    assert "ZeroDivisionError" in caplog.text
    await life.then(second, state="serving")
    assert first.is_closed
    assert life.engines == [first, second]
    second.is_ready = False
    await life.keeper.wait_ready(ready=False)
    assert life.listed.has_engine, "requests wait for its stages"
    await life.keeper.close(0.0)
    await life.running


@pytest.mark.parametrize(
    "error", [IncompatibleError("no fit"), UnavailableError("away")], ids=["bad", "away"]
)
async def test_the_only_model_ends_with_what_was_wrong(
    monkeypatch: pytest.MonkeyPatch, error: StagecoachError
) -> None:
    life = Life(monkeypatch, is_only=True)
    life.attempts.put_nowait(error)
    with pytest.raises(type(error)):
        await life.running


async def test_a_bug_in_the_engine_of_the_only_model_ends_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    life = Life(monkeypatch, is_only=True)
    engine = LivingEngine()
    await life.then(engine, state="serving")
    engine.stopped.set_exception(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        await life.running


async def test_a_keeper_that_is_cancelled_leaves_its_engine_to_be_drained(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    life = Life(monkeypatch, is_only=False)
    engine = LivingEngine()
    await life.then(engine, state="serving")
    life.running.cancel()
    await asyncio.wait({life.running})
    assert not engine.is_closed
    assert life.keeper.is_ready
    await life.keeper.close(0.0)
    assert engine.is_closed


async def test_a_failure_does_not_say_where_files_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    for model, shown in (("/srv/models/x", "m"), ("org/name", "org/name")):
        life = Life(monkeypatch, is_only=False)
        life.running.cancel()
        life.keeper._cluster = ClusterConfig(model=model, stages=parse_stages(["h:1"]))
        life.keeper._note(IncompatibleError(f"{model} has no tensor"))
        assert life.listed.problem == f"{shown} has no tensor"
        await asyncio.wait({life.running})
