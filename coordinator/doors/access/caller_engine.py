"""The engine as a caller may use it: its share of requests at once, and a prefix cache of its own.

Stands between the doors and the engine. Without API keys there are no callers, and everything is
passed on as it is.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from hashlib import blake2b

from coordinator.core.events import GenerationEvent
from coordinator.core.generation_engine import EventStream, GenerationEngine, StepFeed
from coordinator.core.request_spec import Prompt, RequestSpec
from coordinator.core.served_model import ServedModel
from coordinator.doors.access.caller_shares import CallerShares, Share
from coordinator.doors.access.callers import Caller, current_caller
from stagecoach.contract.cluster_status import ModelStatus


class CallerEngine:
    """Implements `GenerationEngine` over another one, for whoever `current_caller` names.

    Args:
        engine: Does the work.
        shares: Shares of all callers of the process: a caller has one share of the requests to
            all models.
    """

    def __init__(self, engine: GenerationEngine, shares: CallerShares) -> None:
        self._engine = engine
        self._shares = shares

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
        salted = replace(spec, cache_salt=salt_of(caller, spec.cache_salt))
        share = self._shares.take(caller)
        try:
            return _CountedStream(await self._engine.submit(salted), share)
        except BaseException:
            share.release()
            raise

    @property
    def served_model(self) -> ServedModel:
        """See `GenerationEngine.served_model`."""
        return self._engine.served_model

    @property
    def is_ready(self) -> bool:
        """See `GenerationEngine.is_ready`."""
        return self._engine.is_ready

    @property
    def problem(self) -> str:
        """See `GenerationEngine.problem`."""
        return self._engine.problem

    async def tokenize(self, prompt: Prompt) -> Sequence[int]:
        """See `GenerationEngine.tokenize`."""
        return await self._engine.tokenize(prompt)

    def token_bytes(self, token_id: int) -> bytes:
        """See `GenerationEngine.token_bytes`."""
        return self._engine.token_bytes(token_id)

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        """See `GenerationEngine.detokenize`."""
        return await self._engine.detokenize(token_ids)

    async def status(self) -> ModelStatus:
        """See `GenerationEngine.status`."""
        return await self._engine.status()

    def watch_steps(self) -> StepFeed:
        """See `GenerationEngine.watch_steps`."""
        return self._engine.watch_steps()


def salt_of(caller: Caller, salt: str | None) -> str:
    """The salt under which a caller's requests share KV with each other and with nobody else's.

    A hash, so that it has one length whatever the caller's own salt is, and no two callers can
    choose salts that meet.
    """
    parts = caller.name if salt is None else f"{caller.name}:{salt}"  # no name has a colon
    return blake2b(parts.encode(errors="surrogatepass"), digest_size=32).hexdigest()


class _CountedStream:
    """Events of one request; releases its share when their end is read or it is cancelled."""

    def __init__(self, stream: EventStream, share: Share) -> None:
        self._stream = stream
        self._share = share

    async def __aiter__(self) -> AsyncIterator[GenerationEvent]:
        try:
            async for event in self._stream:
                yield event
        finally:
            self._share.release()

    def cancel(self) -> None:
        self._stream.cancel()
        self._share.release()
