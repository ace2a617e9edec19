"""Hands what the first choice of a prompt is told of the prompt to the others, in a stream."""

import asyncio
from collections.abc import AsyncGenerator

from coordinator.core.events import GenerationEvent
from coordinator.core.prompt_logprobs import PromptLogprobs
from coordinator.doors.http.choices import Choice


class PromptRelay:
    """The log-probabilities of one prompt, which its first choice alone asks for.

    All choices must be read at once: the others wait for the first.
    """

    def __init__(self) -> None:
        self._pieces: list[PromptLogprobs] = []
        self._is_whole = asyncio.Event()

    async def reader(
        self, choice: Choice, *, is_first: bool
    ) -> AsyncGenerator[GenerationEvent, None]:
        """The events of a choice, those of the prompt before all others.

        Args:
            choice: What is read.
            is_first: Whether it is the one that is told of the prompt.

        Raises:
            StagecoachError: The request failed.
        """
        if not is_first:
            await self._is_whole.wait()
            for piece in self._pieces:
                yield piece
        async for event in choice:
            if not isinstance(event, PromptLogprobs):
                self._is_whole.set()
                yield event
            elif is_first:
                self._pieces.append(event)
                yield event
