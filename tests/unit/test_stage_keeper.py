"""How a stage that dies again and again is started again: never at full speed."""

import asyncio

import pytest

from coordinator.cli.cluster.child import Process, spawn
from coordinator.cli.cluster.stage_keeper import StageKeeper
from stagecoach.contract.errors import UnavailableError

READY = """
import json, sys
print(json.dumps({"listening": "127.0.0.1:7"}), flush=True)
ready = {"address": "127.0.0.1:7", "layers": [0, 1], "pid": 1, "metrics": None}
print(json.dumps(ready), flush=True)
print("the last words", file=sys.stderr)
sys.exit(3)
"""


async def test_pauses_grow_and_the_address_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    listens: list[str] = []
    lines: list[str] = []
    enough = asyncio.Event()
    real_sleep = asyncio.sleep

    async def sleep(pause_s: float) -> None:
        pauses.append(pause_s)
        if len(pauses) == 4:
            enough.set()
            await asyncio.Event().wait()
        await real_sleep(0)

    async def start(listen: str) -> Process:
        listens.append(listen)
        if len(listens) == 3:
            raise UnavailableError("no stage can be started: no memory")
        return await spawn(
            ["-c", READY if len(listens) < 3 else "import sys; sys.exit('cannot start')"]
        )

    monkeypatch.setattr(asyncio, "sleep", sleep)
    keeper = StageKeeper("stage 0", start, relay_logs=False, report=lines.append)
    await keeper.start()
    assert await keeper.listening() == "127.0.0.1:7"
    assert (await keeper.ready()).address == "127.0.0.1:7"
    keeping = asyncio.create_task(keeper.keep())
    await enough.wait()
    keeping.cancel()
    await asyncio.wait({keeping})
    await keeper.stop(grace_s=5.0)
    assert pauses == [0.2, 0.4, 0.8, 1.6]
    assert listens == ["127.0.0.1:0", *["127.0.0.1:7"] * 3]
    assert "stage 0 ended with exit code 3: the last words; starts again in 0.2 s" in lines
    assert "no stage can be started: no memory; starts again in 0.8 s" in lines
    assert lines[-1] == "stage 0 ended with exit code 1: cannot start; starts again in 1.6 s"


async def test_a_stage_that_cannot_start_at_all_is_not_started_again() -> None:
    keeper = StageKeeper(
        "stage 0",
        lambda _: spawn(["-c", "import sys; sys.exit('no such model')"]),
        relay_logs=False,
        report=lambda _: None,
    )
    await keeper.start()
    for wait in (keeper.listening, keeper.ready):
        with pytest.raises(UnavailableError, match="stage 0 ended with exit code 1: no such model"):
            await wait()
    await keeper.stop(grace_s=5.0)


async def test_what_a_killed_stage_logged_last_is_not_called_the_reason() -> None:
    keeper = StageKeeper(
        "stage 0",
        lambda _: spawn(
            ["-c", "import os; os.write(2, b'all is well\\n'); os.kill(os.getpid(), 9)"]
        ),
        relay_logs=False,
        report=lambda _: None,
    )
    await keeper.start()
    with pytest.raises(UnavailableError) as caught:
        await keeper.ready()
    assert caught.value.message == "stage 0 ended with signal SIGKILL; logged last: all is well"
