"""The events of one request on their way to its client.

Bounded by construction: tokens that the client has not taken yet are joined into few events, so a
slow client holds at most its own output, and takes it in pieces. Log-probabilities of a prompt are
packed, and take as many bytes for each of its tokens as `PromptLogprobs.num_bytes` says.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Self

from coordinator.core.events import (
    MAX_JOINED_EVENTS,
    Accepted,
    Finished,
    GenerationEvent,
    TokensEvent,
)
from coordinator.core.prompt_logprobs import PromptLogprobs
from stagecoach.contract.errors import StagecoachError

MAX_JOINED_LOGPROBS = 2
"""Events with log-probabilities, which take a hundred times longer to write."""


class RequestStream:
    """Async iterator over `Accepted`, `PromptLogprobs`, `TokensEvent`s, and one `Finished`.

    Iteration raises the request's `StagecoachError` in place of `Finished` when it failed. Used
    from one event loop, by one reader.

    Args:
        accepted: The first event.
        on_cancel: Called at most once, when the reader cancels before the end.
    """

    def __init__(self, accepted: Accepted, on_cancel: Callable[[], None]) -> None:
        self._accepted: Accepted | None = accepted
        self._prompt: deque[PromptLogprobs] = deque()
        self._joined: deque[TokensEvent] = deque()
        self._tokens: list[TokensEvent] = []
        """What came after those that were joined."""
        self._terminal: Finished | StagecoachError | None = None
        self._is_read = False
        self._changed = asyncio.Event()
        self._changed.set()
        self._on_cancel = on_cancel

    def put(self, event: TokensEvent) -> None:
        """Adds new tokens."""
        assert self._terminal is None, "tokens after the end"
        self._tokens.append(event)
        if len(self._tokens) >= (MAX_JOINED_LOGPROBS if event.logprobs else MAX_JOINED_EVENTS):
            self._joined.append(TokensEvent.joined(self._tokens))
            self._tokens = []
        self._changed.set()

    def put_prompt(self, logprobs: PromptLogprobs) -> None:
        """Adds log-probabilities of the prompt, right behind the last ones, before all tokens."""
        assert self._terminal is None, "log-probabilities after the end"
        self._prompt.extend(logprobs.pieces())
        self._changed.set()

    def end(self, terminal: Finished | StagecoachError) -> None:
        """Adds the terminal event; exactly once."""
        assert self._terminal is None, "a second terminal event"
        self._terminal = terminal
        self._changed.set()

    def cancel(self) -> None:
        """Ends the request; does nothing after its end."""
        if self._terminal is None:
            self._on_cancel()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> GenerationEvent:
        """The next event."""
        while True:
            if self._accepted is not None:
                accepted, self._accepted = self._accepted, None
                return accepted
            if self._prompt:
                return self._prompt.popleft()
            if self._joined:
                return self._joined.popleft()
            if self._tokens:
                tokens, self._tokens = self._tokens, []
                return TokensEvent.joined(tokens)
            if self._is_read:
                raise StopAsyncIteration
            if self._terminal is not None:
                self._is_read = True
                if isinstance(self._terminal, StagecoachError):
                    raise self._terminal
                return self._terminal
            self._changed.clear()
            await self._changed.wait()
