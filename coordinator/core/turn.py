"""A turn on the event loop, which long work gives up again and again."""

import asyncio
import time

TURN_NS = 5_000_000
"""How long work that could go on keeps the loop from all others."""


class Turn:
    """Tells long work when others must have the loop. Starts when it is made."""

    def __init__(self) -> None:
        self._started_ns = time.perf_counter_ns()

    async def give_way(self) -> None:
        """Lets everything else that is ready run, if the turn is over; call it in every loop."""
        if time.perf_counter_ns() - self._started_ns >= TURN_NS:
            await asyncio.sleep(0)
            self._started_ns = time.perf_counter_ns()
