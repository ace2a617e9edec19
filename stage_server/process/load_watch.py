"""Tells people and a parent process the progress of loading."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from stage_server.core.load_board import LoadBoard
from stagecoach.process.load_display import Display, Entry, load_display

PERIOD_S = 0.1
"""Time between two looks at the board."""


@asynccontextmanager
async def shown(
    board: LoadBoard, name: str, *, write_line: Callable[[str], None], json_lines: bool
) -> AsyncIterator[None]:
    """Shows on stderr what stands on the board while the block runs.

    Args:
        board: Where the model thread writes.
        name: Name of this stage, for people.
        write_line: Takes a line where stderr is no terminal.
        json_lines: Also print every change as a JSON line on stdout, `{"progress": {...}}`.
    """
    with load_display([name], write_line) as display:
        following = asyncio.create_task(_follow(board, name, display, json_lines=json_lines))
        try:
            yield
        finally:
            following.cancel()
            await asyncio.wait({following})


async def _follow(board: LoadBoard, name: str, display: Display, *, json_lines: bool) -> None:
    last = None
    while True:
        progress = board.progress
        if progress is not last:
            last = progress
            display.show(name, Entry.of(progress))
            if json_lines:
                print(json.dumps({"progress": progress.to_details()}), flush=True)
        await asyncio.sleep(PERIOD_S)
