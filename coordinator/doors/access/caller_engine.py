"""The engine as a caller may use it: its share of requests at once, and a prefix cache of its own.

Stands between the doors and the engine. Without API keys there are no callers, and everything is
passed on as it is.
"""

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from hashlib import blake2b

from coordinator.core.events import GenerationEvent
from coordinator.core.generation_engine import EventStream, GenerationEngine, StepFeed
from coordinator.core.request_spec import Prompt, RequestSpec
from coordinator.core.served_model import ServedModel
from coordinator.doors.access.callers import Caller, current_caller
from stagecoach.contract.cluster_status import CoordinatorStatus
from stagecoach.contract.errors import QueueFullError


class CallerEngine:
    """Implements `GenerationEngine` over another one, for whoever `current_caller` names.

    Args:
        engine: Does the work.
        max_requests: Requests that one caller may have at once, waiting ones included. None: no
            limit of its own.
    """

    def __init__(self, engine: GenerationEngine, *, max_requests: int | None) -> None:
        self._engine = engine
        self._max_requests = max_requests
        self._num_requests: Counter[Caller] = Counter()

    async def submit(self, spec: RequestSpec) -> EventStream:
        """Queues a request of the current caller; see `GenerationEngine.submit`.

        The request counts from the call until its end is read or it is cancelled.

        Raises:
            QueueFullError: The caller has its share of requests already.
            StagecoachError: As the engine.
        """
        caller = current_caller.get()
        if caller is None:
            return await self._engine.submit(spec)
        num_requests = self._num_requests[caller]
        if self._max_requests is not None and num_requests >= self._max_requests:
            raise QueueFullError(
                f"API key {caller.name!r} has {num_requests} requests at once, its limit is "
                f"{self._max_requests}",
                limit=self._max_requests,
            )
        salted = replace(spec, cache_salt=salt_of(caller, spec.cache_salt))
        count = _Count(caller, self._num_requests)
        try:
            return _CountedStream(await self._engine.submit(salted), count)
        except BaseException:
            count.release()
            raise

    @property
    def served_model(self) -> ServedModel:
        """See `GenerationEngine.served_model`."""
        return self._engine.served_model

    @property
    def is_ready(self) -> bool:
        """See `GenerationEngine.is_ready`."""
        return self._engine.is_ready

    async def wait_ready(self, *, ready: bool) -> None:
        """See `GenerationEngine.wait_ready`."""
        await self._engine.wait_ready(ready=ready)

    async def tokenize(self, prompt: Prompt) -> Sequence[int]:
        """See `GenerationEngine.tokenize`."""
        return await self._engine.tokenize(prompt)

    def token_bytes(self, token_id: int) -> bytes:
        """See `GenerationEngine.token_bytes`."""
        return self._engine.token_bytes(token_id)

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        """See `GenerationEngine.detokenize`."""
        return await self._engine.detokenize(token_ids)

    async def status(self) -> CoordinatorStatus:
        """See `GenerationEngine.status`."""
        return await self._engine.status()

    def watch_steps(self) -> StepFeed:
        """See `GenerationEngine.watch_steps`."""
        return self._engine.watch_steps()

    async def close(self, grace_s: float) -> None:
        """See `GenerationEngine.close`."""
        await self._engine.close(grace_s)


def salt_of(caller: Caller, salt: str | None) -> str:
    """The salt under which a caller's requests share KV with each other and with nobody else's.

    A hash, so that it has one length whatever the caller's own salt is, and no two callers can
    choose salts that meet.
    """
    parts = caller.name if salt is None else f"{caller.name}:{salt}"  # no name has a colon
    return blake2b(parts.encode(errors="surrogatepass"), digest_size=32).hexdigest()


class _Count:
    """One request of a caller, which counts until it is released."""

    def __init__(self, caller: Caller, counts: Counter[Caller]) -> None:
        self._caller = caller
        self._counts = counts
        self._is_counted = True
        counts[caller] += 1

    def release(self) -> None:
        """Counts the request no more; may be called again."""
        if self._is_counted:
            self._is_counted = False
            self._counts[self._caller] -= 1
            if not self._counts[self._caller]:
                del self._counts[self._caller]


class _CountedStream:
    """Events of one request; releases its count when their end is read or it is cancelled."""

    def __init__(self, stream: EventStream, count: _Count) -> None:
        self._stream = stream
        self._count = count

    async def __aiter__(self) -> AsyncIterator[GenerationEvent]:
        try:
            async for event in self._stream:
                yield event
        finally:
            self._count.release()

    def cancel(self) -> None:
        self._stream.cancel()
        self._count.release()
