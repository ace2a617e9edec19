"""What becomes of a prompt before anything is scheduled."""

from array import array
from collections.abc import Sequence
from dataclasses import replace

import pytest

from coordinator.core.embedding import EmbeddingParams
from coordinator.core.request import Request
from coordinator.core.request_spec import (
    MAX_CHAT_MESSAGES,
    MAX_STOP_CHARS,
    ChatMessage,
    ChatPrompt,
    EncodedPrompt,
    RequestSpec,
    TextPrompt,
    TokenPrompt,
)
from coordinator.engine.admission import Admission
from stagecoach.contract.errors import ContextLengthExceededError, InvalidArgumentError


class CharText:
    """One token a character; `#` is beyond the vocabulary."""

    def __init__(self) -> None:
        self.num_encoded = 0

    async def encode(self, prompt: TextPrompt | ChatPrompt) -> "array[int]":
        if isinstance(prompt, TextPrompt):
            return self._encode(prompt.text)
        return self._encode("".join(message.content for message in prompt.messages))

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        return "".join(map(chr, token_ids))

    def _encode(self, text: str) -> "array[int]":
        self.num_encoded += 1
        return array("I", [500 if char == "#" else ord(char) % 100 for char in text])


def create_admission(
    max_request_tokens: int = 20,
    text: CharText | None = None,
    *,
    answers_prompt_logits: bool = True,
    answers_hidden_sums: bool = True,
) -> Admission:
    return Admission(
        text=text or CharText(),
        vocab_size=100,
        eos_token_ids=frozenset({2}),
        max_request_tokens=max_request_tokens,
        answers_prompt_logits=answers_prompt_logits,
        answers_hidden_sums=answers_hidden_sums,
        hidden_size=8,
    )


async def admit(admission: Admission, spec: RequestSpec) -> Request:
    admission.check(spec)
    return admission.admit(spec, await admission.encode(spec.prompt), arrival_ns=7)


@pytest.mark.parametrize("text", ["a#b", "a much longer text#"])
async def test_a_token_that_the_model_has_no_embedding_for_is_refused_alone(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"token id 500 is outside \[0, 100\)"):
        await admit(create_admission(), RequestSpec(prompt=TextPrompt(text=text)))


async def test_text_that_cannot_fit_is_refused_before_it_is_tokenized() -> None:
    huge = "x" * 641
    text = CharText()
    for prompt in (
        TextPrompt(text=huge),
        ChatPrompt(messages=(ChatMessage(role="user", content=huge),)),
    ):
        with pytest.raises(ContextLengthExceededError, match="641 characters"):
            await create_admission(text=text).encode(prompt)
    assert text.num_encoded == 0


async def test_a_prompt_must_leave_room_for_a_token() -> None:
    with pytest.raises(ContextLengthExceededError, match="20 tokens"):
        await admit(create_admission(), RequestSpec(prompt=TextPrompt(text="x" * 20)))
    request = await admit(create_admission(), RequestSpec(prompt=TextPrompt(text="x" * 19)))
    assert request.max_tokens == 1


@pytest.mark.parametrize("max_tokens", [None, 16, 2**32 - 1])
async def test_what_is_asked_for_beyond_the_room_is_the_room(max_tokens: int | None) -> None:
    spec = RequestSpec(prompt=TokenPrompt(token_ids=(5,) * 5), max_tokens=max_tokens)
    assert (await admit(create_admission(), spec)).max_tokens == 15


async def test_more_tokens_than_a_request_may_hold_are_counted_and_not_admitted() -> None:
    admission = create_admission()
    prompt = TextPrompt(text="x" * 21)
    assert len(await admission.tokenize(prompt)) == 21
    with pytest.raises(ContextLengthExceededError, match="has 21 tokens"):
        await admission.encode(prompt)


async def test_what_was_encoded_once_is_used_as_it_is() -> None:
    text = CharText()
    admission = create_admission(text=text)
    token_ids = (1, 2, 3)
    assert await admission.encode(EncodedPrompt(token_ids=token_ids)) is token_ids
    assert text.num_encoded == 0


async def test_a_request_gets_a_name_a_seed_and_the_end_tokens_of_the_model() -> None:
    admission = create_admission()
    spec = RequestSpec(prompt=TextPrompt(text="hello"), stop_token_ids=(7,))
    first, second = await admit(admission, spec), await admit(admission, spec)
    assert first.request_id != second.request_id
    assert first.sampling.seed is not None
    assert first.sampling.seed != second.sampling.seed
    assert first.stop_token_ids == {2, 7}
    assert first.arrival_ns == 7
    ignoring = RequestSpec(prompt=TextPrompt(text="hello"), stop_token_ids=(7,), ignore_eos=True)
    assert (await admit(admission, ignoring)).stop_token_ids == {7}


def test_a_request_id_that_would_forge_a_line_of_a_log_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="request_id has characters"):
        RequestSpec(prompt=TextPrompt(text="x"), request_id="a\nb")


async def test_more_ids_than_a_request_may_hold_are_refused_before_they_are_looked_at() -> None:
    with pytest.raises(ContextLengthExceededError, match=r"has 21 tokens.* may have 20"):
        await create_admission().encode(TokenPrompt(token_ids=(999,) * 21))


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


async def test_prompts_are_not_told_of_where_the_last_stage_does_not_know_how() -> None:
    spec = RequestSpec(prompt=TokenPrompt(token_ids=(1, 2)), prompt_logprobs=0)
    assert (await admit(create_admission(), spec)).prompt_logprobs == 0
    with pytest.raises(InvalidArgumentError, match="prompt_logprobs is set, but") as caught:
        await admit(create_admission(answers_prompt_logits=False), spec)
    assert caught.value.field == "prompt_logprobs"


async def test_embeddings_are_refused_where_the_last_stage_does_not_know_hidden_states() -> None:
    spec = RequestSpec(
        prompt=TokenPrompt(token_ids=(1, 2)), max_tokens=0, embedding=EmbeddingParams()
    )
    request = await admit(create_admission(), spec)
    assert (request.embedding, request.wants_nothing) == (EmbeddingParams(), False)
    with pytest.raises(InvalidArgumentError, match="last stage is of a version that does not tell"):
        await admit(create_admission(answers_hidden_sums=False), spec)


async def test_an_embedding_has_at_most_the_elements_of_a_hidden_state() -> None:
    prompt = TokenPrompt(token_ids=(1, 2))
    spec = RequestSpec(prompt=prompt, max_tokens=0, embedding=EmbeddingParams(dimensions=8))
    await admit(create_admission(), spec)
    wide = replace(spec, embedding=EmbeddingParams(dimensions=9))
    with pytest.raises(
        InvalidArgumentError, match=r"dimensions is 9, must be in \[1, 8\]"
    ) as caught:
        await admit(create_admission(), wide)
    assert caught.value.field == "dimensions"
    with pytest.raises(InvalidArgumentError, match="dimensions is 0, must be at least 1") as caught:
        EmbeddingParams(dimensions=0)
    assert caught.value.field == "dimensions"


async def test_without_output_a_prompt_may_fill_the_context() -> None:
    prompt = TokenPrompt(token_ids=(5,) * 20)
    spec = RequestSpec(prompt=prompt, prompt_logprobs=0, max_tokens=0)
    assert (await admit(create_admission(20), spec)).max_tokens == 0
    with pytest.raises(ContextLengthExceededError):
        await admit(create_admission(20), replace(spec, max_tokens=1))
    with pytest.raises(ContextLengthExceededError):
        await admit(create_admission(19), spec)
    with pytest.raises(InvalidArgumentError, match=r"max_tokens is -1, must be in \[0, ") as caught:
        replace(spec, max_tokens=-1)
    assert caught.value.field == "max_tokens"
