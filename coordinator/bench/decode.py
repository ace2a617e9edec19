"""Runs a batch of requests against a coordinator and notes when every token arrived."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from stagecoach.client import AsyncClient, InternalError, InvalidArgumentError, Timings


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedRequest:
    """One request, as its client saw it; instants in seconds on the monotonic clock."""

    started_s: float
    """When it was sent."""
    arrivals_s: list[float]
    """When each token arrived; at least one."""
    timings: Timings
    """Where the time went, as the coordinator says."""

    @property
    def time_to_first_token_s(self) -> float:
        """Time from sending to the arrival of the first token."""
        return self.arrivals_s[0] - self.started_s


async def decode(
    client: AsyncClient,
    prompt: Sequence[int],
    num_tokens: int,
    *,
    timeout_s: float | None = None,
    model: str | None = None,
) -> DecodedRequest:
    """Generates exactly `num_tokens` tokens, greedily, whatever the model's end tokens.

    Raises:
        StagecoachError: The request failed.
    """
    arrivals_s: list[float] = []
    started_s = time.perf_counter()
    async with client.generate(
        prompt, model=model, max_tokens=num_tokens, ignore_eos=True, timeout_s=timeout_s
    ) as stream:
        async for event in stream:
            arrivals_s += [time.perf_counter()] * len(event.token_ids)
        result = await stream.result()
    if len(arrivals_s) != num_tokens:
        raise InternalError(f"{len(arrivals_s)} tokens were generated, {num_tokens} were asked for")
    return DecodedRequest(started_s=started_s, arrivals_s=arrivals_s, timings=result.timings)


async def decode_together(
    client: AsyncClient,
    prompts: Sequence[Sequence[int]],
    num_tokens: int,
    *,
    timeout_s: float | None = None,
    model: str | None = None,
) -> list[DecodedRequest]:
    """Runs one request for each prompt, all at the same time; see `decode`."""
    requests = (
        decode(client, prompt, num_tokens, timeout_s=timeout_s, model=model) for prompt in prompts
    )
    return await asyncio.gather(*requests)


def decode_tokens_per_s(batch: Sequence[DecodedRequest]) -> float:
    """Speed of decoding, prefill excluded.

    Counts the tokens that arrived after every request had its first one, over the time until the
    last of them.

    Raises:
        InvalidArgumentError: None did: the requests are too short to tell a speed.
    """
    start_s = max(request.arrivals_s[0] for request in batch)
    arrivals_s = [arrival for request in batch for arrival in request.arrivals_s]
    num_decoded = sum(arrival > start_s for arrival in arrivals_s)
    if num_decoded == 0:
        raise InvalidArgumentError(
            "output_tokens: no token arrived after every request had its first: more are needed"
            " to measure a speed",
            field="output_tokens",
        )
    return num_decoded / (max(arrivals_s) - start_s)


def prefill_tokens_per_s(batch: Sequence[DecodedRequest], num_prompt_tokens: int) -> float:
    """Speed of prefill: all prompts, over the time until every request had its first token."""
    start_s = min(request.started_s for request in batch)
    end_s = max(request.arrivals_s[0] for request in batch)
    return len(batch) * num_prompt_tokens / (end_s - start_s)


def time_to_first_token_s(batch: Sequence[DecodedRequest]) -> float:
    """Time in which half of the requests had their first token."""
    return median(request.time_to_first_token_s for request in batch)
