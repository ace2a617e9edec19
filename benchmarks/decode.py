"""Runs a batch of requests against a coordinator and notes when every token arrived."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from coordinator.client import AsyncClient, Timings


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedRequest:
    """One request, as its client saw it."""

    arrivals_s: list[float]
    """When each token arrived, on the monotonic clock; at least one."""
    timings: Timings
    """Where the time went, as the coordinator says."""


async def decode(client: AsyncClient, prompt: Sequence[int], num_tokens: int) -> DecodedRequest:
    """Generates exactly `num_tokens` tokens greedily."""
    arrivals_s: list[float] = []
    async with client.generate(prompt, max_tokens=num_tokens, ignore_eos=True) as stream:
        async for event in stream:
            arrivals_s += [time.perf_counter()] * len(event.token_ids)
        result = await stream.result()
    assert len(arrivals_s) == num_tokens, (len(arrivals_s), num_tokens)
    return DecodedRequest(arrivals_s=arrivals_s, timings=result.timings)


async def decode_together(
    client: AsyncClient, prompts: Sequence[Sequence[int]], num_tokens: int
) -> list[DecodedRequest]:
    """Runs one request for each prompt, all at the same time."""
    return await asyncio.gather(*(decode(client, prompt, num_tokens) for prompt in prompts))


def decode_tokens_per_s(batch: Sequence[DecodedRequest]) -> float:
    """Speed of decoding, prefill excluded.

    Counts the tokens that arrived after every request had its first one, over the time until the
    last of them.
    """
    start_s = max(request.arrivals_s[0] for request in batch)
    arrivals_s = [arrival for request in batch for arrival in request.arrivals_s]
    num_decoded = sum(arrival > start_s for arrival in arrivals_s)
    return num_decoded / (max(arrivals_s) - start_s)
