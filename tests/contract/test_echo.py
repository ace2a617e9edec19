"""`echo` and `prompt_logprobs` over HTTP by the `openai` package, against transformers.

Every byte is a token of the model, so it is known which tokens a text has, and where.
"""

import json
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from openai import OpenAI
from openai.types import CompletionChoice

from stagecoach.contract.layer_range import LayerRange
from tests.byte_models import MAX_MODEL_LEN, NUM_SPECIAL_TOKENS, byte_backend, byte_model
from tests.clusters import running_engine
from tests.contract.http_door import in_background, serving_http
from tests.tiny_models import reference_model

MODEL = "llama"
PROMPT = "Dawn: caf\N{LATIN SMALL LETTER E WITH ACUTE} \N{GRINNING FACE} ab"
FORCE_A = {str(NUM_SPECIAL_TOKENS + 32): 100}
FORCE_END = {"2": 100}
BEGIN, END = 1, 2


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return byte_model(tmp_path_factory.mktemp("model"))


@asynccontextmanager
async def serving(model: Path) -> AsyncIterator[str]:
    ranges = [LayerRange(0, 3), LayerRange(3, 6)]
    async with (
        running_engine(model, ranges, max_num_batched_tokens=16) as engine,
        serving_http(engine) as address,
    ):
        yield address


@pytest.fixture(scope="module")
def client(model: Path) -> Iterator[OpenAI]:
    with (
        in_background(serving(model)) as address,
        OpenAI(base_url=f"http://{address}/v1", api_key="none", max_retries=0) as found,
    ):
        yield found


def ids_of(text: str) -> list[int]:
    ids: list[int] = byte_backend().encode(text).ids
    return ids


def expected(model: Path, token_ids: Sequence[int]) -> torch.Tensor:
    """float64 `[num_tokens - 1, vocab_size]`."""
    reference: Any = reference_model(model)
    with torch.no_grad():
        logits = reference(torch.tensor([list(token_ids)])).logits[0, :-1]
    return torch.log_softmax(logits.double(), dim=1)


def assert_told(
    choice: CompletionChoice, model: Path, prompt: str, token_ids: Sequence[int]
) -> None:
    """All tokens have their log-probability, and stand where their bytes are in the text."""
    told = choice.logprobs
    assert told is not None
    assert told.token_logprobs is not None
    assert told.top_logprobs is not None
    assert told.text_offset is not None
    assert told.tokens is not None
    assert choice.text.startswith(prompt)
    rows = expected(model, token_ids)
    assert told.token_logprobs[0] is None
    assert told.top_logprobs[0] is None
    assert told.token_logprobs[1:] == pytest.approx(
        [row[token_id].item() for row, token_id in zip(rows, token_ids[1:], strict=True)], abs=1e-4
    )
    for top, row, logprob in zip(told.top_logprobs[1:], rows, told.token_logprobs[1:], strict=True):
        assert logprob in top.values()
        assert len(top) == 1 or max(top.values()) == pytest.approx(row.max().item(), abs=1e-4)
    spelled = b"".join(map(bytes_of, told.tokens))
    assert spelled.decode(errors="replace") == choice.text
    assert told.text_offset == [
        len(b"".join(map(bytes_of, told.tokens[:i])).decode(errors="ignore"))
        for i in range(len(told.tokens))
    ]


def bytes_of(token: str) -> bytes:
    """What a token of an answer spells, as OpenAI writes parts of characters."""
    if not token.startswith("bytes:"):
        return token.encode()
    return bytes.fromhex(token.removeprefix("bytes:").replace("\\x", ""))


@pytest.mark.parametrize("top", [0, 1, 5])
@pytest.mark.parametrize("as_ids", [False, True])
def test_an_echo_has_the_prompt_and_the_completion_token_by_token(
    client: OpenAI, model: Path, top: int, as_ids: bool
) -> None:
    done = client.completions.create(
        model=MODEL,
        prompt=ids_of(PROMPT) if as_ids else PROMPT,
        max_tokens=3,
        logprobs=top,
        echo=True,
        logit_bias=FORCE_A,
        extra_body={"return_token_ids": True},
    )
    [choice] = done.choices
    assert choice.text == f"{PROMPT}AAA"
    assert choice.model_extra is not None
    output = choice.model_extra["token_ids"]
    assert len(output) == 3
    assert_told(choice, model, PROMPT, [*ids_of(PROMPT), *output])
    assert done.usage is not None
    assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (len(ids_of(PROMPT)), 3)


def test_no_token_but_those_of_the_prompt_comes_where_none_is_wanted(
    client: OpenAI, model: Path
) -> None:
    done = client.completions.create(
        model=MODEL, prompt=PROMPT, max_tokens=0, logprobs=1, echo=True
    )
    [choice] = done.choices
    assert (choice.text, choice.finish_reason) == (PROMPT, "length")
    assert_told(choice, model, PROMPT, ids_of(PROMPT))
    assert done.usage is not None
    assert done.usage.completion_tokens == 0
    bare = client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=0, echo=True)
    assert (bare.choices[0].text, bare.choices[0].logprobs) == (PROMPT, None)


def test_a_prompt_that_fills_the_context_is_told_as_well(client: OpenAI, model: Path) -> None:
    prompt = "ab" * (MAX_MODEL_LEN // 2)
    done = client.completions.create(
        model=MODEL, prompt=prompt, max_tokens=0, logprobs=0, echo=True
    )
    assert_told(done.choices[0], model, prompt, ids_of(prompt))
    with pytest.raises(openai.BadRequestError):
        client.completions.create(model=MODEL, prompt=prompt, max_tokens=1, echo=True)


def test_an_end_token_is_told_behind_an_echo(client: OpenAI, model: Path) -> None:
    """Clients take off one token from the end, whichever it is."""
    done = client.completions.create(
        model=MODEL, prompt="abc", max_tokens=1, logprobs=1, echo=True, logit_bias=FORCE_END
    )
    [choice] = done.choices
    assert (choice.text, choice.finish_reason) == ("abc", "stop")
    assert choice.logprobs is not None
    assert choice.logprobs.tokens == ["a", "b", "c", "</s>"]
    assert choice.logprobs.text_offset == [0, 1, 2, 3]
    rows = expected(model, [*ids_of("abc"), END])
    assert choice.logprobs.token_logprobs is not None
    assert choice.logprobs.token_logprobs[-1] == pytest.approx(rows[-1, END].item(), abs=1e-4)


def test_without_log_probabilities_an_echo_is_text(client: OpenAI) -> None:
    for prompt in (PROMPT, ids_of(PROMPT)):
        done = client.completions.create(
            model=MODEL, prompt=prompt, max_tokens=2, echo=True, logit_bias=FORCE_A
        )
        assert (done.choices[0].text, done.choices[0].logprobs) == (f"{PROMPT}AA", None)


def test_every_prompt_of_many_and_every_choice_has_its_own(client: OpenAI, model: Path) -> None:
    prompts = ["abc", PROMPT, "x"]
    done = client.completions.create(
        model=MODEL, prompt=prompts, max_tokens=2, logprobs=2, echo=True, n=3, logit_bias=FORCE_A
    )
    assert [choice.index for choice in done.choices] == list(range(9))
    for choice in done.choices:
        prompt = prompts[choice.index // 3]
        assert choice.text == f"{prompt}AA"
        assert_told(choice, model, prompt, ids_of(choice.text))


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("max_tokens", [0, 2])
@pytest.mark.parametrize("logprobs", [None, 2])
def test_a_stream_brings_what_a_whole_answer_has(
    client: OpenAI, n: int, max_tokens: int, logprobs: int | None
) -> None:
    settings: Any = {
        "model": MODEL,
        "prompt": [PROMPT, "x"],
        "max_tokens": max_tokens,
        "logprobs": logprobs,
        "echo": True,
        "n": n,
        "logit_bias": FORCE_A,
    }
    whole = client.completions.create(**settings)
    texts = [""] * len(whole.choices)
    told: list[list[Any]] = [[] for _ in whole.choices]
    for chunk in client.completions.create(**settings, stream=True):
        [choice] = chunk.choices
        texts[choice.index] += choice.text
        if choice.logprobs is not None:
            told[choice.index] += rows_of(choice)
    assert texts == [choice.text for choice in whole.choices]
    for rows, choice in zip(told, whole.choices, strict=True):
        assert (choice.logprobs is None) == (logprobs is None)
        expected_rows = [] if choice.logprobs is None else rows_of(choice)
        for row, other in zip(rows, expected_rows, strict=True):
            assert row[0] == other[0]
            assert row[1] == pytest.approx(other[1], abs=1e-4)
            assert row[2:] == other[2:]


def rows_of(choice: CompletionChoice) -> list[Any]:
    told = choice.logprobs
    assert told is not None
    lists = (told.tokens, told.token_logprobs, told.text_offset)
    return list(zip(*(one or [] for one in lists), strict=True))


def test_the_list_of_a_prompt_is_what_vllm_writes(client: OpenAI, model: Path) -> None:
    done = client.completions.create(
        model=MODEL,
        prompt=PROMPT,
        max_tokens=0,
        extra_body={"prompt_logprobs": 2},
    )
    assert done.choices[0].text == ""
    assert done.choices[0].model_extra is not None
    assert_listed(done.choices[0].model_extra["prompt_logprobs"], model, ids_of(PROMPT), 2)


def assert_listed(
    told: list[dict[str, Any] | None], model: Path, token_ids: list[int], top: int
) -> None:
    assert told[0] is None
    backend = byte_backend()
    for entries, row, token_id in zip(
        told[1:], expected(model, token_ids), token_ids[1:], strict=True
    ):
        assert entries is not None
        order = row.argsort(descending=True).tolist()
        assert {int(name) for name in entries} == {token_id, *order[:top]}
        for name, entry in entries.items():
            assert entry["logprob"] == pytest.approx(row[int(name)].item(), abs=1e-4)
            assert entry["rank"] == order.index(int(name)) + 1
            assert entry["decoded_token"] == backend.decode([int(name)], skip_special_tokens=False)


def test_a_conversation_has_the_list_beside_its_choices(client: OpenAI, model: Path) -> None:
    messages: Any = [{"role": "user", "content": "hi"}]
    rendered = client.post("../tokenize", body={"messages": messages}, cast_to=dict[str, Any])
    done = client.chat.completions.create(
        model=MODEL, messages=messages, max_tokens=2, n=2, extra_body={"prompt_logprobs": 3}
    )
    assert len(done.choices) == 2
    assert done.model_extra is not None
    assert_listed(done.model_extra["prompt_logprobs"], model, rendered["tokens"], 3)


def test_both_lists_have_as_many_as_each_asked_for(client: OpenAI, model: Path) -> None:
    done = client.completions.create(
        model=MODEL,
        prompt="abc",
        max_tokens=0,
        logprobs=1,
        echo=True,
        extra_body={"prompt_logprobs": 4},
    )
    [choice] = done.choices
    assert_told(choice, model, "abc", ids_of("abc"))
    assert choice.logprobs is not None
    assert choice.logprobs.top_logprobs is not None
    assert all(top is None or len(top) <= 2 for top in choice.logprobs.top_logprobs)
    assert choice.model_extra is not None
    assert_listed(choice.model_extra["prompt_logprobs"], model, ids_of("abc"), 4)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 0, "echo": False}, "max_tokens"),
        ({"prompt_logprobs": 21}, "prompt_logprobs"),
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
        ({"echo": True, "logprobs": 21}, "logprobs"),
        ({"echo": True, "min_tokens": 2, "max_tokens": 0}, "min_tokens"),
    ],
)
def test_what_cannot_be_is_refused_by_the_name_of_the_field(
    client: OpenAI, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.post("/completions", body={"prompt": "abc", **fields}, cast_to=object)
    assert caught.value.param == param


def test_special_tokens_of_a_prompt_of_ids_have_their_names(client: OpenAI, model: Path) -> None:
    token_ids = [BEGIN, *ids_of("ab"), END, *ids_of("\N{GRINNING FACE}")[:2]]
    done = client.completions.create(
        model=MODEL, prompt=token_ids, max_tokens=0, logprobs=0, echo=True
    )
    [choice] = done.choices
    assert choice.text == "<s>ab</s>\N{REPLACEMENT CHARACTER}"
    assert choice.logprobs is not None
    assert choice.logprobs.text_offset == [0, 3, 4, 5, 9, 9]


def test_the_answer_is_plain_json_of_one_form(client: OpenAI) -> None:
    raw = client.completions.with_raw_response.create(
        model=MODEL, prompt="ab", max_tokens=0, logprobs=0, echo=True
    )
    [choice] = json.loads(raw.text)["choices"]
    assert choice["logprobs"]["tokens"] == ["a", "b"]
    assert choice["logprobs"]["token_logprobs"][0] is None
    assert choice["logprobs"]["text_offset"] == [0, 1]
