"""The official `openai` package against the HTTP door of a real two-stage pipeline."""

import asyncio
import json
import math
import struct
from base64 import b64decode
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionMessageParam
from pydantic import BaseModel

from stagecoach.contract.layer_range import LayerRange
from tests.byte_models import MAX_MODEL_LEN, NUM_SPECIAL_TOKENS, VOCAB_SIZE, byte_model
from tests.clusters import running_engine
from tests.contract.http_door import in_background, serving_http

MODEL = "llama"
HIDDEN_SIZE = 48
DEADLINE_S = 90.0
PROMPT = "The stagecoach left at dawn, with nine passengers"
CHAT: list[ChatCompletionMessageParam] = [
    {"role": "developer", "content": "Be brief."},
    {
        "role": "user",
        "content": [{"type": "text", "text": "Name a "}, {"type": "text", "text": "colour."}],
    },
]
FORCE_A = {str(NUM_SPECIAL_TOKENS + 32): 100}
"""The tokens of printable ASCII lie in the order of their bytes, from `!` on."""


@asynccontextmanager
async def serving(model: Path) -> AsyncIterator[str]:
    ranges = [LayerRange(0, 3), LayerRange(3, 6)]
    async with running_engine(model, ranges) as engine, serving_http(engine) as address:
        yield address


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    model = byte_model(tmp_path_factory.mktemp("model"))
    with in_background(serving(model)) as found:
        yield found


@pytest.fixture
def client(address: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"http://{address}/v1", api_key="none", max_retries=0) as found:
        yield found


@pytest.fixture
async def async_client(address: str) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"http://{address}/v1", api_key="none", max_retries=0) as found:
        yield found


def test_the_served_model_is_listed_and_described(client: OpenAI) -> None:
    [listed] = client.models.list().data
    assert listed.id == MODEL
    assert client.models.retrieve(MODEL) == listed
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("gpt-5")
    assert caught.value.code == "model_not_found"


def test_a_completion_is_what_its_tokens_spell(client: OpenAI) -> None:
    done = client.completions.create(
        model=MODEL,
        prompt=PROMPT,
        max_tokens=12,
        temperature=0,
        extra_body={"return_token_ids": True, "ignore_eos": True},
    )
    [choice] = done.choices
    assert choice.finish_reason == "length"
    assert choice.model_extra is not None
    token_ids = choice.model_extra["token_ids"]
    assert len(token_ids) == 12
    text = client.post("../detokenize", body={"tokens": token_ids}, cast_to=dict[str, str])
    assert text["prompt"] == choice.text
    assert done.usage is not None
    assert done.usage.prompt_tokens == len(PROMPT.encode())
    assert done.usage.completion_tokens == 12
    assert done.usage.total_tokens == done.usage.prompt_tokens + 12


def test_a_completion_has_sixteen_tokens_unless_told_otherwise(client: OpenAI) -> None:
    done = client.completions.create(
        model=MODEL, prompt=PROMPT, temperature=0, extra_body={"ignore_eos": True}
    )
    assert done.usage is not None
    assert done.usage.completion_tokens == 16


def test_a_prompt_of_token_ids_is_the_prompt_of_its_text(client: OpenAI) -> None:
    tokens = client.post("../tokenize", body={"prompt": PROMPT}, cast_to=dict[str, Any])["tokens"]
    texts = [
        client.completions.create(model=MODEL, prompt=prompt, temperature=0).choices[0].text
        for prompt in (PROMPT, tokens)
    ]
    assert texts[0] == texts[1]


def test_a_repeated_prompt_is_cached(client: OpenAI) -> None:
    def cached(salt: str) -> int:
        done = client.completions.create(
            model=MODEL, prompt=PROMPT, max_tokens=2, extra_body={"cache_salt": salt}
        )
        assert done.usage is not None
        assert done.usage.prompt_tokens_details is not None
        assert done.usage.prompt_tokens_details.cached_tokens is not None
        return done.usage.prompt_tokens_details.cached_tokens

    assert [cached("a"), cached("a"), cached("b")] == [0, 48, 0]


def test_several_prompts_are_completed_as_if_alone(client: OpenAI) -> None:
    prompts = [PROMPT, "Once upon a time", "日本語 🚀"]
    together = client.completions.create(model=MODEL, prompt=prompts, temperature=0, n=2)
    alone = [
        client.completions.create(model=MODEL, prompt=prompt, temperature=0).choices[0].text
        for prompt in prompts
    ]
    assert [choice.index for choice in together.choices] == list(range(6))
    assert [choice.text for choice in together.choices] == [text for text in alone for _ in "ab"]
    assert together.usage is not None
    assert together.usage.prompt_tokens == sum(len(prompt.encode()) for prompt in prompts)


def test_the_tokenizer_tells_what_a_client_needs_to_write_a_prompt(
    client: OpenAI, tmp_path: Path
) -> None:
    info = client.get("../tokenizer_info", cast_to=dict[str, Any])
    config = json.loads((byte_model(tmp_path) / "tokenizer_config.json").read_text())
    assert info == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **config,
        "chat_template": config.get("chat_template"),
    }


@pytest.mark.parametrize("prompt", ["short", PROMPT * 4], ids=["short", "shared"])
def test_choices_differ_and_a_seed_repeats_them(client: OpenAI, prompt: str) -> None:
    def texts(seed: int, n: int) -> list[str]:
        done = client.completions.create(model=MODEL, prompt=prompt, n=n, seed=seed, top_p=0.9)
        return [choice.text for choice in done.choices]

    first = texts(7, 4)
    assert len(set(first)) == 4
    assert texts(7, 4) == first
    assert texts(7, 1) == first[:1]
    assert set(texts(-8, 4)).isdisjoint(first)


def test_choices_stream_side_by_side(client: OpenAI) -> None:
    whole = client.chat.completions.create(
        model=MODEL, messages=CHAT, n=3, seed=3, max_completion_tokens=12
    )
    texts = dict.fromkeys(range(3), "")
    reasons: list[str] = []
    for chunk in client.chat.completions.create(
        model=MODEL, messages=CHAT, n=3, seed=3, max_completion_tokens=12, stream=True
    ):
        [choice] = chunk.choices
        texts[choice.index] += choice.delta.content or ""
        if choice.finish_reason is not None:
            reasons.append(choice.finish_reason)
    assert list(texts.values()) == [choice.message.content for choice in whole.choices]
    assert sorted(reasons) == sorted(choice.finish_reason for choice in whole.choices)


def test_a_chat_streams_the_text_that_it_returns_whole(client: OpenAI) -> None:
    whole = client.chat.completions.create(
        model=MODEL, messages=CHAT, max_tokens=32, temperature=0, metadata={"a": "b"}
    )
    assert whole.metadata == {"a": "b"}
    assert whole.choices[0].message.role == "assistant"
    *chunks, last = client.chat.completions.create(
        model=MODEL,
        messages=CHAT,
        max_tokens=32,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.choices[0].message.content
    assert last.choices == []
    assert last.usage is not None
    assert whole.usage is not None
    assert last.usage.total_tokens == whole.usage.total_tokens
    assert all(chunk.usage is None for chunk in chunks)


async def test_many_streams_of_the_async_client_do_not_mix(async_client: AsyncOpenAI) -> None:
    async def streamed(seed: int) -> str:
        chunks = await async_client.completions.create(
            model=MODEL, prompt=PROMPT, max_tokens=24, seed=seed, stream=True
        )
        return "".join([chunk.choices[0].text async for chunk in chunks])

    async def whole(seed: int) -> str:
        done = await async_client.completions.create(
            model=MODEL, prompt=PROMPT, max_tokens=24, seed=seed
        )
        return done.choices[0].text

    together = await asyncio.gather(*map(streamed, range(8)))
    assert together == await asyncio.gather(*map(whole, range(8)))
    assert len(set(together)) == 8


@pytest.mark.parametrize("n", [1, 3])
async def test_a_client_that_leaves_gives_its_place_up(async_client: AsyncOpenAI, n: int) -> None:
    before = await async_client.get("../status", cast_to=dict[str, Any])
    chunks = await async_client.completions.create(
        model=MODEL,
        prompt=PROMPT,
        n=n,
        max_tokens=400,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    await anext(aiter(chunks))
    await chunks.close()
    async with asyncio.timeout(DEADLINE_S):
        while True:
            status = await async_client.get("../status", cast_to=dict[str, Any])
            if status["running"] == status["waiting"] == 0:
                break
    after = await async_client.get("../status", cast_to=dict[str, Any])
    assert after["generated_tokens"] == status["generated_tokens"]
    assert after["generated_tokens"] - before["generated_tokens"] < 400 * n
    assert after["kv_blocks_free"] == after["kv_blocks_total"]


def test_a_bias_decides_and_a_penalty_undoes_it(client: OpenAI) -> None:
    def text(**settings: Any) -> str:
        done: Completion = client.completions.create(
            model=MODEL, prompt=PROMPT, max_tokens=4, logit_bias=FORCE_A, **settings
        )
        return done.choices[0].text

    assert text() == "AAAA"
    assert text(stop="AAA") == ""
    assert text(stop=["x", "AA"]) == ""
    assert text(temperature=0, extra_body={"top_k": 1}) == "AAAA"
    assert text(temperature=0, extra_body={"stop_token_ids": [int(next(iter(FORCE_A)))]}) == ""
    penalised = client.completions.create(
        model=MODEL,
        prompt=PROMPT,
        max_tokens=40,
        temperature=0,
        frequency_penalty=2,
        logit_bias=dict.fromkeys(FORCE_A, 30),
    )
    assert penalised.choices[0].text.startswith("AA")
    assert set(penalised.choices[0].text) != {"A"}


def test_a_text_has_as_many_tokens_as_it_must(client: OpenAI) -> None:
    settings: Any = {"stop_token_ids": [int(next(iter(FORCE_A)))], "min_tokens": 5}
    done = client.completions.create(
        model=MODEL, prompt=PROMPT, max_tokens=9, logit_bias=FORCE_A, extra_body=settings
    )
    assert done.usage is not None
    assert done.usage.completion_tokens == 5
    assert done.choices[0].finish_reason == "stop"
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(
            model=MODEL, prompt=PROMPT, max_tokens=4, extra_body={"min_tokens": 5}
        )
    assert caught.value.param == "min_tokens"


def test_log_probabilities_of_a_chat_spell_its_text(client: OpenAI) -> None:
    def bytes_of(stream: bool) -> tuple[bytes, str]:
        spelled, text = b"", ""
        settings: Any = {"logprobs": True, "top_logprobs": 3, "temperature": 0, "max_tokens": 12}
        answers = (
            client.chat.completions.create(model=MODEL, messages=CHAT, stream=True, **settings)
            if stream
            else [client.chat.completions.create(model=MODEL, messages=CHAT, **settings)]
        )
        for answer in answers:
            [choice] = answer.choices
            content = getattr(choice, "delta", None) or getattr(choice, "message", None)
            assert content is not None
            text += content.content or ""
            for token in (choice.logprobs.content if choice.logprobs else None) or ():
                assert len(token.top_logprobs) == 3
                assert token.top_logprobs[0].bytes == token.bytes  # greedy takes the likeliest
                assert token.top_logprobs[0].logprob == token.logprob <= 0
                assert sum(math.exp(top.logprob) for top in token.top_logprobs) <= 1 + 1e-6
                spelled += bytes(token.bytes or ())
        return spelled, text

    spelled, text = bytes_of(stream=False)
    assert len(spelled) == 12
    assert spelled.decode(errors="replace") == text
    assert bytes_of(stream=True) == (spelled, text)


def test_log_probabilities_of_a_completion_say_where_each_token_is(client: OpenAI) -> None:
    done = client.completions.create(
        model=MODEL, prompt=PROMPT, max_tokens=4, logprobs=2, logit_bias=FORCE_A
    )
    found = done.choices[0].logprobs
    assert found is not None
    assert found.tokens == ["A"] * 4
    assert found.text_offset == [0, 1, 2, 3]
    assert found.token_logprobs is not None
    assert found.top_logprobs is not None
    for token, logprob, top in zip(
        found.tokens, found.token_logprobs, found.top_logprobs, strict=True
    ):
        assert top[token] == logprob <= max(top.values())
        assert 2 <= len(top) <= 3


class Answer(BaseModel):
    """A schema so narrow that a random model cannot but fill it."""

    colour: Literal["red", "green"]
    is_bright: bool


def test_a_schema_is_kept_to(client: OpenAI) -> None:
    done = client.chat.completions.parse(
        model=MODEL, messages=CHAT, response_format=Answer, seed=1, max_tokens=100
    )
    [choice] = done.choices
    assert choice.finish_reason == "stop"
    assert choice.message.parsed is not None
    assert choice.message.parsed.colour in ("red", "green")


def test_other_forms_are_kept_to(client: OpenAI) -> None:
    def text(**form: Any) -> str:
        done: ChatCompletion = client.chat.completions.create(
            model=MODEL, messages=CHAT, seed=2, max_tokens=200, temperature=0.5, **form
        )
        return done.choices[0].message.content or ""

    assert text(extra_body={"structured_outputs": {"regex": "a{3}b|c{4}"}}) in ("aaab", "cccc")
    lark = {"structured_outputs": {"grammar": 'start: "x" "y"'}}
    assert text(extra_body=lark) == "xy"
    schema = {"type": "integer", "minimum": 7, "maximum": 8}
    assert json.loads(text(extra_body={"structured_outputs": {"json": schema}})) in (7, 8)
    choice = ["a.b", "(", "\n/x y", '"é"']
    assert text(extra_body={"structured_outputs": {"choice": choice}}) in choice
    for one in choice:
        assert text(extra_body={"structured_outputs": {"choice": [one]}}) == one
    assert text(response_format={"type": "text"}, logit_bias=FORCE_A) == "A" * 200
    assert text(response_format={"type": "json_object"}).startswith("{")


@pytest.mark.parametrize(
    ("settings", "param"),
    [
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": 5}}}]},
            "tools[0].function.parameters.type",
        ),
        (
            {
                "tools": [{"type": "function", "function": {"name": "f"}}],
                "tool_choice": {"type": "function", "function": {"name": "g"}},
            },
            "tool_choice",
        ),
        ({"temperature": 2.5}, "temperature"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logit_bias": {str(VOCAB_SIZE): 1}}, "logit_bias"),
        ({"extra_body": {"stop_token_ids": [VOCAB_SIZE]}}, "stop_token_ids"),
        ({"extra_body": {"no_such_field": 1}}, "no_such_field"),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": {"type": "banana"}},
                }
            },
            "response_format.json_schema.schema",
        ),
        ({"extra_body": {"structured_outputs": {"json": {"type": 5}}}}, "structured_outputs.json"),
        ({"extra_body": {"structured_outputs": {"regex": "("}}}, "structured_outputs.regex"),
        (
            {"extra_body": {"structured_outputs": {"grammar": "start: nothing"}}},
            "structured_outputs.grammar",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_refused_is_named(
    client: OpenAI, settings: dict[str, Any], param: str, stream: bool
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=MODEL, messages=CHAT, stream=stream, **settings)
    assert caught.value.param == param
    assert param in caught.value.message
    assert caught.value.type == "invalid_request_error"


@pytest.mark.parametrize("num_tokens", [MAX_MODEL_LEN - 1, MAX_MODEL_LEN, MAX_MODEL_LEN + 1])
def test_a_prompt_at_the_limit_is_taken_and_above_it_refused(
    client: OpenAI, num_tokens: int
) -> None:
    if num_tokens < MAX_MODEL_LEN:
        done = client.completions.create(model=MODEL, prompt=[5] * num_tokens, max_tokens=1)
        assert done.usage is not None
        assert done.usage.prompt_tokens == num_tokens
        return
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=MODEL, prompt=[5] * num_tokens, max_tokens=1)
    assert caught.value.code == "context_length_exceeded"
    assert str(num_tokens) in caught.value.message
    assert str(MAX_MODEL_LEN) in caught.value.message


def test_another_model_is_not_found(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.completions.create(model="gpt-5", prompt="x")
    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"


def test_embeddings_are_vectors_of_length_one(client: OpenAI) -> None:
    """The package asks for base64 by itself, and decodes it."""
    made = client.embeddings.create(model=MODEL, input=["one", "two", "one"], user="me")
    assert (made.object, made.model, made.usage.prompt_tokens) == ("list", MODEL, 9)
    assert made.usage.total_tokens == 9
    assert [(one.object, one.index) for one in made.data] == [("embedding", i) for i in range(3)]
    first, other, again = (one.embedding for one in made.data)
    assert len(first) == HIDDEN_SIZE
    assert sum(value * value for value in first) == pytest.approx(1)
    assert first == pytest.approx(again, abs=1e-5)
    assert first != pytest.approx(other, abs=1e-2)


def test_numbers_and_base64_are_the_same_embeddings(client: OpenAI) -> None:
    def made(encoding_format: Literal["float", "base64"]) -> list[Any]:
        answer = client.embeddings.create(
            model=MODEL,
            input=[[5, 6, 7], [8]],
            encoding_format=encoding_format,
            extra_body={"pooling": "mean"},
        )
        return [one.embedding for one in answer.data]

    coded = [list(struct.unpack(f"<{HIDDEN_SIZE}f", b64decode(one))) for one in made("base64")]
    for one, other in zip(made("float"), coded, strict=True):
        assert one == pytest.approx(other, abs=1e-5)  # other steps may round otherwise


def test_dimensions_are_the_first_ones_made_one_long_again(client: OpenAI) -> None:
    whole = client.embeddings.create(model=MODEL, input=PROMPT).data[0].embedding
    cut = client.embeddings.create(model=MODEL, input=PROMPT, dimensions=5).data[0].embedding
    length = math.sqrt(sum(value * value for value in whole[:5]))
    assert cut == pytest.approx([value / length for value in whole[:5]], abs=1e-5)
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model=MODEL, input=PROMPT, dimensions=HIDDEN_SIZE + 1)
    assert caught.value.param == "dimensions"
    assert f"must be in [1, {HIDDEN_SIZE}]" in caught.value.message


def test_a_text_that_cannot_be_embedded_is_named_by_its_place(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model=MODEL, input=["one", "x" * (MAX_MODEL_LEN + 1)])
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "input[1]")
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model=MODEL, input=[[5], [VOCAB_SIZE]])
    assert caught.value.param == "input[1]"


async def test_many_texts_beside_a_completion(async_client: AsyncOpenAI) -> None:
    texts = [f"text {i % 7}" for i in range(200)]
    done, made = await asyncio.gather(
        async_client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=20),
        async_client.embeddings.create(model=MODEL, input=texts),
    )
    assert done.usage is not None
    assert len(made.data) == 200
    for one, first in zip(made.data[7:], made.data, strict=False):
        assert one.embedding == pytest.approx(first.embedding, abs=1e-5)
