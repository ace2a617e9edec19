"""Sequences that are held until the mask of their next token is known.

Another process finds which tokens may follow a token of a grammar, while the step's other tokens
are taken in. The engine waits a moment for these masks before it fills the next micro-batch, so
that as a rule no sequence misses a micro-batch. A sequence whose mask is late is held out of
micro-batches until the mask is there.
"""

import asyncio
from collections.abc import Mapping
from functools import partial

from coordinator.engine.live_request import LiveRequest

MIN_WAIT_S = 0.002
MAX_WAIT_S = 0.02
"""Most seconds that the sequences of others wait for those that were just held."""

WAIT_SHARE = 0.25
"""Longest wait for masks, as a share of the time that their micro-batch took: to miss the next one
costs a sequence all of that."""


class MaskWaits:
    """Holds and lets go. Owned by the engine's task.

    Args:
        requests: All that have not ended, by id.
        wake: Set when a sequence may go on.
    """

    def __init__(self, requests: Mapping[str, LiveRequest], wake: asyncio.Event) -> None:
        self._requests = requests
        self._wake = wake
        self._fresh: set[str] = set()
        self._wait_s = 0.0
        self._ready: list[LiveRequest] = []
        self._are_all_ready = asyncio.Event()

    def hold(self, live: LiveRequest, *, step_s: float) -> None:
        """Holds a sequence whose sampler is not ready.

        Args:
            live: Request whose mask is waited for.
            step_s: What the micro-batch took that it was in.
        """
        self._wait_s = max(self._wait_s, WAIT_SHARE * step_s)
        live.sequence.is_held = True
        self._fresh.add(live.request_id)
        live.sampler.when_ready(partial(self._hear, live))

    async def settle(self) -> None:
        """Waits a moment for those that were held since the last time."""
        self._fresh &= self._requests.keys()
        if self._fresh:
            self._are_all_ready.clear()
            wait_s = min(max(self._wait_s, MIN_WAIT_S), MAX_WAIT_S)
            timer = asyncio.get_running_loop().call_later(wait_s, self._are_all_ready.set)
            try:
                await self._are_all_ready.wait()
            finally:
                timer.cancel()
            self._fresh.clear()
        self._wait_s = 0.0

    def take_ready(self) -> list[LiveRequest]:
        """Takes the requests whose masks became ready since the last call; they are still held.

        A request that has ended is left out.
        """
        ready, self._ready = self._ready, []
        return [live for live in ready if self._requests.get(live.request_id) is live]

    def _hear(self, live: LiveRequest) -> None:
        self._fresh.discard(live.request_id)
        self._ready.append(live)
        self._wake.set()
        if not self._fresh:
            self._are_all_ready.set()
