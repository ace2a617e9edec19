"""What becomes of a prompt before anything is scheduled."""

from collections.abc import Iterable
from typing import cast

import pytest

from coordinator.admission import Admission
from coordinator.core.request_spec import (
    MAX_CHAT_MESSAGES,
    MAX_STOP_CHARS,
    ChatMessage,
    ChatPrompt,
    RequestSpec,
    TextPrompt,
    TokenPrompt,
)
from coordinator.text.tokenizer import Tokenizer
from protos.errors import ContextLengthExceededError, InvalidArgumentError


class CharTokenizer:
    """One token a character; `#` is an added token beyond the vocabulary."""

    def encode(self, text: str) -> list[int]:
        return [500 if char == "#" else ord(char) % 100 for char in text]

    def encode_chat(self, messages: Iterable[ChatMessage]) -> list[int]:
        return [i for message in messages for i in self.encode(message.content)]


def create_admission(max_request_tokens: int = 20) -> Admission:
    return Admission(
        tokenizer=cast("Tokenizer", CharTokenizer()),
        vocab_size=100,
        eos_token_ids=frozenset({2}),
        max_request_tokens=max_request_tokens,
    )


def test_a_token_that_the_model_has_no_embedding_for_is_refused_alone() -> None:
    with pytest.raises(InvalidArgumentError, match=r"token id 500 is outside \[0, 100\)"):
        create_admission().admit(RequestSpec(prompt=TextPrompt(text="a#b")))


def test_text_that_cannot_fit_is_refused_before_it_is_tokenized() -> None:
    huge = "x" * 641
    for prompt in (
        TextPrompt(text=huge),
        ChatPrompt(messages=(ChatMessage(role="user", content=huge),)),
    ):
        with pytest.raises(ContextLengthExceededError, match="641 characters"):
            create_admission().admit(RequestSpec(prompt=prompt))


def test_a_prompt_must_leave_room_for_a_token() -> None:
    with pytest.raises(ContextLengthExceededError, match="20 tokens"):
        create_admission().admit(RequestSpec(prompt=TextPrompt(text="x" * 20)))
    request = create_admission().admit(RequestSpec(prompt=TextPrompt(text="x" * 19)))
    assert request.max_tokens == 1


@pytest.mark.parametrize("max_tokens", [None, 16, 2**32 - 1])
def test_what_is_asked_for_beyond_the_room_is_the_room(max_tokens: int | None) -> None:
    spec = RequestSpec(prompt=TokenPrompt(token_ids=(5,) * 5), max_tokens=max_tokens)
    assert create_admission().admit(spec).max_tokens == 15


def test_a_request_gets_a_name_a_seed_and_the_end_tokens_of_the_model() -> None:
    admission = create_admission()
    spec = RequestSpec(prompt=TextPrompt(text="hello"), stop_token_ids=(7,))
    first, second = admission.admit(spec), admission.admit(spec)
    assert first.request_id != second.request_id
    assert first.sampling.seed is not None
    assert first.sampling.seed != second.sampling.seed
    assert first.stop_token_ids == {2, 7}
    ignoring = RequestSpec(prompt=TextPrompt(text="hello"), stop_token_ids=(7,), ignore_eos=True)
    assert admission.admit(ignoring).stop_token_ids == {7}


def test_a_request_id_that_would_forge_a_line_of_a_log_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="request_id has characters"):
        RequestSpec(prompt=TextPrompt(text="x"), request_id="a\nb")


def test_more_ids_than_a_request_may_hold_are_refused_before_they_are_looked_at() -> None:
    with pytest.raises(ContextLengthExceededError, match=r"has 21 tokens.* may have 20"):
        create_admission().tokenize(TokenPrompt(token_ids=(999,) * 21))


def test_what_a_client_can_make_long_has_a_limit() -> None:
    message = ChatMessage(role="user", content="")
    ChatPrompt(messages=(message,) * MAX_CHAT_MESSAGES)
    with pytest.raises(InvalidArgumentError, match="4097 messages") as caught:
        ChatPrompt(messages=(message,) * (MAX_CHAT_MESSAGES + 1))
    assert caught.value.field == "prompt.chat.messages"
    prompt = TextPrompt(text="x")
    RequestSpec(prompt=prompt, stop=("x" * MAX_STOP_CHARS,))
    with pytest.raises(InvalidArgumentError, match="1025 characters") as caught:
        RequestSpec(prompt=prompt, stop=("x", "x" * (MAX_STOP_CHARS + 1)))
    assert caught.value.field == "stop"
