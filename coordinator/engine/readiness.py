"""Whether requests are served, and how others hear of it when that changes."""

import asyncio


class Readiness:
    """A switch that can be waited for; one event loop."""

    def __init__(self) -> None:
        self._is_ready = False
        self._changed = asyncio.Event()

    @property
    def is_ready(self) -> bool:
        """The present state."""
        return self._is_ready

    def set(self, is_ready: bool) -> None:
        """Sets the state and wakes those who wait."""
        if is_ready != self._is_ready:
            self._is_ready = is_ready
            self._changed.set()
            self._changed = asyncio.Event()

    async def wait(self, is_ready: bool) -> None:
        """Returns when the state has become so."""
        while self._is_ready != is_ready:
            await self._changed.wait()
