"""What a stream holds of the log-probabilities of a prompt while its choices are read."""

import asyncio
import weakref
from collections.abc import AsyncIterator

import pytest

from coordinator.core.events import GenerationEvent, TokensEvent
from coordinator.core.prompt_logprobs import PromptLogprobs
from coordinator.doors.http.prompt_relay import PromptRelay

NUM_PIECES = 50
TOKEN = TokensEvent(token_ids=(7,), text="x", logprobs=(), text_ends=())


class Piece(PromptLogprobs):
    """One that weak references may refer to."""


async def first_choice(made: list[weakref.ref[Piece]]) -> AsyncIterator[GenerationEvent]:
    for start in range(1, NUM_PIECES + 1):
        piece = Piece(
            start=start, logprobs=[-1.0], ranks=[1], num_top=0, top_token_ids=[], top_logprobs=[]
        )
        made.append(weakref.ref(piece))
        yield piece
        del piece
        await asyncio.sleep(0)
    yield TOKEN


async def other_choice() -> AsyncIterator[GenerationEvent]:
    yield TOKEN


@pytest.mark.parametrize("num_choices", [1, 2, 4])
async def test_all_choices_are_told_of_the_prompt_and_nothing_is_kept(num_choices: int) -> None:
    relay = PromptRelay(num_choices)
    made: list[weakref.ref[Piece]] = []
    most = 0

    async def read(place: int) -> list[int]:
        nonlocal most
        starts: list[int] = []
        choice = other_choice() if place else first_choice(made)
        async for event in relay.reader(choice, place):
            if isinstance(event, PromptLogprobs):
                starts.append(event.start)
                most = max(most, sum(one() is not None for one in made))
            else:
                assert event is TOKEN
                starts.append(0)
        return starts

    found = await asyncio.gather(*map(read, range(num_choices)))
    assert found == num_choices * [[*range(1, NUM_PIECES + 1), 0]]
    assert most <= 4
