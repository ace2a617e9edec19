"""Greedy requests that run while something breaks, and what became of each."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from stagecoach.client import AsyncClient
from stagecoach.contract.errors import StagecoachError
from tests.faults.reference import Continuation
from tests.faults.waiting import eventually


@dataclass(slots=True, kw_only=True)
class Stream:
    """One request and what has come of it so far."""

    text: Continuation
    num_prompt_tokens: int
    num_tokens: int
    task: "asyncio.Task[None] | None" = None
    token_ids: list[int] = field(default_factory=list)
    arrivals_s: list[float] = field(default_factory=list)
    """On the monotonic clock, one for each token."""
    num_ends: int = 0
    error: StagecoachError | None = None
    has_left: bool = False
    """True when its client cancelled it."""

    @property
    def is_on_its_way(self) -> bool:
        """True when its tokens so far are those of the undisturbed run."""
        return self.text.goes_on_with(self.num_prompt_tokens, tuple(self.token_ids))

    @property
    def is_complete(self) -> bool:
        """True when it has every token of the undisturbed run."""
        has_all = self.error is None and len(self.token_ids) == self.num_tokens
        return has_all and self.is_on_its_way

    async def run(self, client: AsyncClient) -> None:
        """Reads the request to its end."""
        prompt = self.text.prompt(self.num_prompt_tokens)
        stream = client.generate(prompt, max_tokens=self.num_tokens, ignore_eos=True)
        try:
            async with stream:
                async for event in stream:
                    self.token_ids += event.token_ids
                    self.arrivals_s += [time.monotonic()] * len(event.token_ids)
                await stream.result()
        except StagecoachError as error:
            self.error = error
        except asyncio.CancelledError:
            self.has_left = True
            raise
        self.num_ends += 1

    def leave(self) -> None:
        """Cancels the request, as a client does that disconnects."""
        if self.task is not None:
            self.task.cancel()


class Traffic:
    """Streams that run at once. For one event loop; `start` makes it."""

    def __init__(self, streams: Sequence[Stream]) -> None:
        self.streams = streams

    @classmethod
    def start(
        cls,
        client: AsyncClient,
        texts: Sequence[Continuation],
        *,
        num_tokens: int = 120,
        num_prompt_tokens: Callable[[int], int] = lambda index: 8 + 5 * index,
    ) -> "Traffic":
        """Starts a stream for each text.

        Args:
            client: Whom to ask.
            texts: What they generate.
            num_tokens: Of each.
            num_prompt_tokens: Of each, by its index.
        """
        streams = [
            Stream(text=text, num_prompt_tokens=num_prompt_tokens(index), num_tokens=num_tokens)
            for index, text in enumerate(texts)
        ]
        for stream in streams:
            stream.task = asyncio.create_task(stream.run(client))
        return cls(streams)

    @property
    def num_arrived(self) -> int:
        """Tokens of all streams so far."""
        return sum(len(stream.token_ids) for stream in self.streams)

    async def until_each_has(self, num_tokens: int, within_s: float = 30.0) -> None:
        """Waits until every stream has so many tokens; none may have ended."""

        def each_has() -> bool:
            assert not any(stream.num_ends for stream in self.streams), "too late for a fault"
            return min(len(stream.token_ids) for stream in self.streams) >= num_tokens

        await eventually(
            each_has, within_s=within_s, what=f"{num_tokens} tokens of each", every_s=0.001
        )

    def leave(self) -> None:
        """Cancels every stream."""
        for stream in self.streams:
            stream.leave()

    async def ended(self, within_s: float) -> None:
        """Waits for the end of all (I1)."""
        tasks = [stream.task for stream in self.streams if stream.task is not None]
        _, late = await asyncio.wait(tasks, timeout=within_s)
        for task in late:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert not late, f"{len(late)} of {len(tasks)} requests did not end within {within_s} s"

    @property
    def errors(self) -> list[StagecoachError]:
        """Of the streams that failed."""
        return [stream.error for stream in self.streams if stream.error is not None]
