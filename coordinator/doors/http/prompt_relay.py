"""Hands what the first choice of a prompt is told of the prompt to the others, in a stream."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator

from coordinator.core.events import GenerationEvent
from coordinator.core.prompt_logprobs import PromptLogprobs


class PromptRelay:
    """The log-probabilities of one prompt, which its first choice alone asks for.

    A piece is held until all choices were read past it. They must be read at once: the others wait
    for the first.

    Args:
        num_choices: Choices of the prompt.
    """

    def __init__(self, num_choices: int) -> None:
        self._unread: list[asyncio.Queue[PromptLogprobs | None]] = [
            asyncio.Queue() for _ in range(num_choices - 1)
        ]
        """What each of the others has still to read; None where the prompt ends. At most a prompt
        each, of which they share the pieces."""

    async def reader(
        self, choice: AsyncIterator[GenerationEvent], place: int
    ) -> AsyncGenerator[GenerationEvent, None]:
        """The events of a choice, those of the prompt before all others.

        Args:
            choice: What is read.
            place: Its place among the choices of the prompt; the first is told of the prompt.

        Raises:
            StagecoachError: The request failed.
        """
        if place:
            while (piece := await self._unread[place - 1].get()) is not None:
                yield piece
        is_told = place > 0
        async for event in choice:
            if not is_told:
                is_told = not isinstance(event, PromptLogprobs)
                for queue in self._unread:
                    queue.put_nowait(event if isinstance(event, PromptLogprobs) else None)
            yield event
