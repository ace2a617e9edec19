"""Every token of a completion has a place in its text, and text[place:] begins with it."""

from collections.abc import Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from coordinator.core.events import TokenLogprobs, TokensEvent
from coordinator.doors.http.text_places import PlacedToken, TextPlaces
from coordinator.text.output_text import OutputText
from coordinator.text.tokenizer import Tokenizer
from coordinator.text.tokenizer_files import load_tokenizer
from stagecoach.model_files import open_model

STOPS = st.lists(st.sampled_from(["a", " the", "<|im_end|>", "\n\n", "b<|im_start|>"]), max_size=3)


@pytest.fixture(scope="module")
def demo() -> Tokenizer:
    tokenizer = load_tokenizer(open_model("demo"))
    assert tokenizer is not None
    return tokenizer


def places_of(
    tokenizer: Tokenizer, token_ids: Sequence[int], stops: Sequence[str], joints: Sequence[bool]
) -> tuple[str, list[PlacedToken]]:
    """The text and the places of an output whose events are joined where `joints` says so."""
    output = OutputText(tokenizer, stops)
    places = TextPlaces(tokenizer.token_bytes)
    placed: list[PlacedToken] = []
    text = ""
    waiting: TokensEvent | None = None
    for token_id, is_joined in zip(token_ids, joints, strict=True):
        delta = output.push(token_id)
        event = TokensEvent(
            token_ids=(token_id,),
            text=delta.text,
            logprobs=(TokenLogprobs(-1.0, ()),),
            text_ends=(output.num_chars,),
        )
        waiting = event if waiting is None else TokensEvent.joined([waiting, event])
        if not is_joined:
            text += waiting.text
            placed += places.push(waiting)
            assert all(token.start <= len(text) for token in placed)
            waiting = None
        if delta.stopped:
            break
    if waiting is not None:
        text += waiting.text
        placed += places.push(waiting)
    last = output.flush().text
    return text + last, placed + places.finish(last)


def token_ids_of_the_demo() -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, 300) | st.integers(0, 49151), max_size=24)


@settings(max_examples=300, deadline=None)
@given(data=st.data(), token_ids=token_ids_of_the_demo(), stops=STOPS)
def test_a_token_begins_at_its_place_and_no_place_is_beyond_the_text(
    demo: Tokenizer, data: st.DataObject, token_ids: list[int], stops: list[str]
) -> None:
    size = len(token_ids)
    joints = data.draw(st.lists(st.booleans(), min_size=size, max_size=size))
    check_places(demo, token_ids, stops, joints)


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=20), stops=STOPS)
@example(text="\U0001f600A\U0001f600 the end", stops=[" the"])
def test_a_token_of_a_valid_text_begins_at_its_place(
    demo: Tokenizer, text: str, stops: list[str]
) -> None:
    token_ids = demo.encode(text) if text else []
    check_places(demo, token_ids, stops, [False] * len(token_ids))


def check_places(
    demo: Tokenizer, token_ids: list[int], stops: list[str], joints: list[bool]
) -> None:
    text, placed = places_of(demo, token_ids, stops, joints)
    assert [token.token_id for token in placed] == token_ids[: len(placed)]
    starts = [token.start for token in placed]
    assert starts == sorted(starts)
    assert all(start <= len(text) for start in starts)
    for token in placed:
        spelling = demo.token_bytes(token.token_id)
        if demo.detokenize([token.token_id]).encode() != spelling:
            continue  # special, or a part of a character
        rest = text[token.start :]
        assert rest.startswith(spelling.decode()) or spelling.decode().startswith(rest)
