"""Text is tokenized the same in the coordinator and beside it, and hangs nobody."""

import asyncio
from array import array
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from coordinator.core.request_spec import ChatMessage, ChatPrompt, TextPrompt
from coordinator.text import text_job, text_workers
from coordinator.text.chat_template import ChatTemplate
from coordinator.text.text_workers import MAX_INLINE_BYTES, TextWorkers
from coordinator.text.tokenizer import Tokenizer
from coordinator.text.tokenizer_files import load_tokenizer
from stagecoach.contract.errors import (
    ContextLengthExceededError,
    DeadlineExceededError,
    InvalidArgumentError,
    QueueFullError,
)
from stagecoach.model_files import open_model
from tests.byte_models import byte_backend

ENDLESS = "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}" + (
    "{% endfor %}" * 3
)
HANGS_IF_ASKED = f"{{% if messages[0]['content'] == 'hang' %}}{ENDLESS}{{% endif %}}" + (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
)


@asynccontextmanager
async def running(tokenizer: Tokenizer) -> AsyncIterator[TextWorkers]:
    workers = TextWorkers(tokenizer, tokenizer.to_state())
    workers.start()
    try:
        yield workers
    finally:
        await workers.close()


def chat(*contents: str) -> ChatPrompt:
    return ChatPrompt(messages=tuple(ChatMessage(role="user", content=one) for one in contents))


def tokenizer_with(template: str) -> Tokenizer:
    """One token a byte, and a chat template."""
    return Tokenizer(byte_backend(), chat_template=ChatTemplate(template, {}))


def demo() -> Tokenizer:
    tokenizer = load_tokenizer(open_model("demo"))
    assert tokenizer is not None
    return tokenizer


async def test_a_worker_gives_the_ids_and_the_text_that_the_tokenizer_gives() -> None:
    tokenizer = demo()
    text = "Déjà vu \N{GRINNING FACE} <|im_start|> 12345\n" * 100
    assert len(text) > MAX_INLINE_BYTES
    async with running(tokenizer) as workers:
        for prompt in (TextPrompt(text=text), chat("hello"), chat(text, "b", "c")):
            expected = tokenizer.encode_prompt(prompt)
            assert (await workers.encode(prompt)).tolist() == expected
            assert await workers.detokenize(expected) == tokenizer.detokenize(expected)
        assert await workers.detokenize(expected[:3]) == tokenizer.detokenize(expected[:3])


async def test_only_short_texts_are_tokenized_in_the_coordinator() -> None:
    workers = TextWorkers(demo(), b"")
    assert workers.encode_now(TextPrompt(text="a" * MAX_INLINE_BYTES)) is not None
    assert workers.encode_now(TextPrompt(text="a" * (MAX_INLINE_BYTES + 1))) is None
    emoji = "\N{GRINNING FACE}" * (MAX_INLINE_BYTES // 4)
    assert workers.encode_now(TextPrompt(text=emoji)) is not None
    assert workers.encode_now(TextPrompt(text=emoji + "a")) is None
    await workers.close()


async def test_what_is_wrong_with_a_prompt_is_said_as_the_tokenizer_says_it() -> None:
    refused = "{{ raise_exception('not of b') }}"
    template = f"{{% if messages[-1].content.endswith('b') %}}{refused}{{% endif %}}a"
    tokenizer = tokenizer_with(template)
    surrogate = "\ud83d" + "a" * MAX_INLINE_BYTES
    async with running(tokenizer) as workers:
        for prompt in (chat("a", "b"), TextPrompt(text=surrogate)):
            with pytest.raises(InvalidArgumentError) as expected:
                tokenizer.encode_prompt(prompt)
            with pytest.raises(InvalidArgumentError) as caught:
                await workers.encode(prompt)
            assert caught.value.message == expected.value.message
            assert caught.value.field == expected.value.field


async def test_a_template_that_hangs_costs_its_own_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(text_workers, "SLOW_TIMEOUT_S", 3600.0)
    async with running(tokenizer_with(HANGS_IF_ASKED)) as workers:
        assert len(await workers.encode(chat("hello"))) > 0
        hanging = [asyncio.create_task(workers.encode(chat("hang"))) for _ in range(3)]
        good = [workers.encode(chat("hello")) for _ in range(8)]
        long = workers.encode(TextPrompt(text="x" * 100_000))
        assert [len(ids) for ids in await asyncio.gather(*good, long)] == [12] * 8 + [100_000]
        assert not any(one.done() for one in hanging)
        for one in hanging:
            one.cancel()
        await asyncio.wait(hanging)


async def test_what_takes_too_long_is_ended_with_the_field_and_the_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(text_workers, "QUICK_TIMEOUT_S", 0.1)
    monkeypatch.setattr(text_workers, "SLOW_TIMEOUT_S", 0.2)
    async with running(tokenizer_with(HANGS_IF_ASKED)) as workers:
        with pytest.raises(DeadlineExceededError, match=r"messages: \d+ bytes .* 0\.2 s") as caught:
            await workers.encode(chat("hang"))
    assert caught.value.details["field"] == "prompt.chat.messages"


async def test_giving_up_ends_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else ten abandoned conversations would hold up the next for ten times their limit."""
    monkeypatch.setattr(text_workers, "QUICK_TIMEOUT_S", 3600.0)
    async with running(tokenizer_with(HANGS_IF_ASKED)) as workers:
        for _ in range(10):
            hanging = asyncio.create_task(workers.encode(chat("hang")))
            await asyncio.sleep(0.1)
            hanging.cancel()
        assert len(await workers.encode(chat("hello"))) == 12


async def test_a_template_that_takes_all_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_workers, "_SLOW_MEMORY_BYTES", 300 << 20)
    template = "{{ (messages[0]['content'] * 1000000)|upper|lower|length }}"
    async with running(tokenizer_with(template)) as workers:
        with pytest.raises(InvalidArgumentError, match="memory"):
            await workers.encode(chat("x" * 1000))
        assert len(await workers.encode(chat("x"))) == 7


async def test_more_waiting_texts_than_the_limit_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(text_workers, "_MAX_WAITING", 2)
    async with running(tokenizer_with(HANGS_IF_ASKED)) as workers:
        hanging = [asyncio.create_task(workers.encode(chat("hang"))) for _ in range(6)]
        await asyncio.sleep(0.1)
        with pytest.raises(QueueFullError, match="the limit is 2"):
            await workers.encode(chat("hello"))
        for one in hanging:
            one.cancel()
        await asyncio.wait(hanging)


async def test_ids_that_came_as_an_array_are_detokenized_too() -> None:
    tokenizer = demo()
    token_ids = array("I", tokenizer.encode("word " * 1000))
    async with running(tokenizer) as workers:
        assert await workers.detokenize(token_ids) == tokenizer.detokenize(token_ids)


def test_more_tokens_than_any_model_takes_are_counted_and_not_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A template may write any number of them for a message."""
    monkeypatch.setattr(text_job, "MAX_PROMPT_TOKENS", 5000)
    tokenizer = tokenizer_with("{{ messages[0]['content'] * 1000 }}")
    handle = text_job.prepare(tokenizer.to_state())
    assert len(text_job.read_token_ids(handle(text_job.encode_call(chat("abcde"))))) == 5000
    answer = handle(text_job.encode_call(chat("abcdef")))
    assert len(answer) < 1000
    with pytest.raises(ContextLengthExceededError, match="6000 tokens, at most 5000"):
        text_job.read_token_ids(answer)
