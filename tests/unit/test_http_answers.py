"""Answers to requests that ask for log-probabilities have lists of them, whatever came."""

from typing import Any

import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from coordinator.core.events import Finished, TokenLogprobs, TokensEvent
from coordinator.core.request import FinishReason
from coordinator.doors.http.answer import AnswerHead, ChoiceOutput
from coordinator.doors.http.chat_answer import ChatAnswer
from coordinator.doors.http.completion_answer import CompletionAnswer
from coordinator.doors.http.schema.base import ResponseModel
from coordinator.doors.http.schema.sampling import PromptTokensDetails, Usage
from tests.ended_requests import NO_TIME
from tests.whole_answers import whole

USAGE = Usage(
    prompt_tokens=1,
    completion_tokens=0,
    total_tokens=1,
    prompt_tokens_details=PromptTokensDetails(cached_tokens=0),
)
EMPTY_CHAT: dict[str, Any] = {"content": [], "refusal": None}
EMPTY_COMPLETION: dict[str, Any] = {
    "tokens": [],
    "token_logprobs": [],
    "top_logprobs": [],
    "text_offset": [],
}


def head(*, with_logprobs: bool) -> AnswerHead:
    return AnswerHead(
        id="cmpl-1",
        created_s=0,
        model="m",
        with_token_ids=False,
        with_logprobs=with_logprobs,
        with_usage=False,
        spell=lambda token_id: bytes([token_id]),
    )


def finished(text: str = "") -> Finished:
    return Finished(
        finish_reason=FinishReason.STOP,
        text=text,
        num_prompt_tokens=1,
        num_completion_tokens=0,
        num_cached_tokens=0,
        timings=NO_TIME,
    )


def event(text: str, shown: str, end: int) -> TokensEvent:
    return TokensEvent(
        token_ids=tuple(text.encode()),
        text=shown,
        logprobs=(TokenLogprobs(-1.0, ()),) * len(text),
        text_ends=tuple(range(end - len(text) + 1, end + 1)),
    )


def choice_of(model: ResponseModel | None) -> dict[str, Any]:
    assert model is not None
    choice: dict[str, Any] = model.model_dump(exclude_unset=True)["choices"][0]
    return choice


@pytest.mark.parametrize("with_logprobs", [True, False])
def test_an_empty_chat_answer_has_the_lists_that_were_asked_for(with_logprobs: bool) -> None:
    answer = ChatAnswer(head(with_logprobs=with_logprobs), None)
    answered = whole(answer, [ChoiceOutput(text="", tokens=None, end=finished())], USAGE)
    expected = EMPTY_CHAT if with_logprobs else None
    assert choice_of(answered)["logprobs"] == expected
    ChatCompletion.model_validate(answered.model_dump(exclude_unset=True), strict=True)
    for chunk in (answer.opening(0), answer.ending(0, finished("rest"))):
        assert choice_of(chunk)["logprobs"] == expected
        ChatCompletionChunk.model_validate(chunk.model_dump(exclude_unset=True), strict=True)


@pytest.mark.parametrize("with_logprobs", [True, False])
def test_an_empty_completion_has_the_lists_that_were_asked_for(with_logprobs: bool) -> None:
    answer = CompletionAnswer(head(with_logprobs=with_logprobs))
    answered = whole(answer, [ChoiceOutput(text="", tokens=None, end=finished())], USAGE)
    expected = EMPTY_COMPLETION if with_logprobs else None
    assert choice_of(answered)["logprobs"] == expected
    assert choice_of(answer.ending(0, finished()))["logprobs"] == expected
    Completion.model_validate(answered.model_dump(exclude_unset=True), strict=True)


def test_tokens_come_with_their_text_when_it_was_held_back() -> None:
    """A client that adds up chunks never has a place beyond its text."""
    answer = CompletionAnswer(head(with_logprobs=True))
    first = choice_of(answer.tokens(0, event("ab", "a", 2)))
    assert (first["text"], first["logprobs"]["tokens"]) == ("a", ["a"])
    assert answer.tokens(0, event("c", "", 3)) is None
    last = choice_of(answer.ending(0, finished("b")))
    assert (last["text"], last["logprobs"]["tokens"]) == ("b", ["b", "c"])
    assert last["logprobs"]["text_offset"] == [1, 2]


def test_tokens_that_a_stop_string_cut_off_stand_at_the_end_of_the_text() -> None:
    answer = CompletionAnswer(head(with_logprobs=True))
    output = ChoiceOutput(text="a", tokens=event("abcd", "a", 4), end=finished())
    assert choice_of(whole(answer, [output], USAGE))["logprobs"]["text_offset"] == [0, 1, 1, 1]
