"""Shows snapshots until told to stop: live in a terminal, one after the other elsewhere."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Protocol

from rich.console import Console
from rich.live import Live

from coordinator.cli.shared.connection import Connection
from coordinator.cli.shared.console import table_console
from coordinator.cli.watch.keys import quit_key
from coordinator.cli.watch.sampler import ClusterSampler
from coordinator.cli.watch.screen import render
from coordinator.cli.watch.snapshot import Snapshot
from coordinator.observe.step_window import StageActivity
from stagecoach.contract.status_json import status_json
from stagecoach.process.stop_event import run_until, stop_event

_NS_PER_MS = 1e6


async def watch(connection: Connection, *, interval_s: float, json_output: bool) -> None:
    """Shows the state of a cluster until Ctrl-C or q, whether the coordinator is there or not.

    Args:
        connection: The coordinator's.
        interval_s: Between two snapshots.
        json_output: Print one JSON object a line.
    """
    stop = stop_event(with_parent=False)
    async with connection.async_client() as client:
        sampler = ClusterSampler(client, interval_s=interval_s)

        async def show() -> None:
            async with _display(json_output=json_output) as display:
                while True:
                    started_s = time.monotonic()
                    display.show(await sampler.sample())
                    await asyncio.sleep(max(started_s + interval_s - time.monotonic(), 0))

        listening = asyncio.create_task(sampler.listen())
        try:
            with quit_key(stop):
                await run_until(stop, show())
        finally:
            listening.cancel()
            await asyncio.wait({listening})


class _Display(Protocol):
    def show(self, snapshot: Snapshot) -> None:
        """Shows a snapshot."""
        ...


class _LiveDisplay:
    """Each snapshot takes the place of the one before."""

    def __init__(self, console: Console, live: Live) -> None:
        self._console = console
        self._live = live
        self.last: Snapshot | None = None

    def show(self, snapshot: Snapshot) -> None:
        self.last = snapshot
        self._live.update(render(snapshot, self._console), refresh=True)


class _PlainDisplay:
    """One snapshot after the other, each with its time."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def show(self, snapshot: Snapshot) -> None:
        self._console.print(time.strftime("%Y-%m-%d %H:%M:%S"))
        self._console.print(render(snapshot, self._console))
        self._console.file.flush()


class _JsonDisplay:
    """One JSON object a line."""

    def show(self, snapshot: Snapshot) -> None:
        print(json.dumps(snapshot_json(snapshot)), flush=True)


@asynccontextmanager
async def _display(*, json_output: bool) -> AsyncIterator[_Display]:
    console = table_console()
    if json_output:
        yield _JsonDisplay()
    elif not console.is_terminal:
        yield _PlainDisplay(console)
    else:
        live = Live(console=console, screen=True, auto_refresh=False)
        display = _LiveDisplay(console, live)
        try:
            with live:
                yield display
        finally:
            if display.last is not None:  # the screen went with the block
                console.print(render(display.last, console))


def snapshot_json(snapshot: Snapshot) -> dict[str, object]:
    """A snapshot as the fields of one JSON object.

    Those of `status`; with `error`, and for each stage of each model `busy` and `ms_per_step`.
    While the coordinator does not answer there are only `ready`, which is false, and `error`.
    """
    error = snapshot.error
    if error is not None or snapshot.status is None:
        message = snapshot.why_not
        return {
            "ready": False,
            "error": error and {"reason": error.reason, "message": message},
        }
    content = status_json(snapshot.status)
    models = content["models"]
    assert isinstance(models, list)
    for model, (_, activities) in zip(models, snapshot.models, strict=True):
        for stage in model["stages"]:
            stage.update(_activity_json(stage["index"], activities))
    return {**content, "stages": models[0]["stages"], "error": None}


def _activity_json(index: int, activities: Sequence[StageActivity]) -> dict[str, object]:
    """What a stage did, which its servers share."""
    if index >= len(activities):
        return {"busy": 0.0, "ms_per_step": None}
    mean = activities[index].mean
    return {
        "busy": activities[index].busy_share,
        "ms_per_step": {
            "compute": mean.compute_ns / _NS_PER_MS,
            "queue": mean.queue_ns / _NS_PER_MS,
            "wire": mean.wire_ns / _NS_PER_MS,
            "serialize": mean.serialize_ns / _NS_PER_MS,
        },
    }
