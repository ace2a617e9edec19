"""Log-probabilities of prompts through the stages, against transformers' log-softmax in float32."""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from coordinator.assembly import open_engine
from coordinator.config import ClusterConfig, parse_stages
from coordinator.core.events import Finished, GenerationEvent, TokensEvent
from coordinator.core.prompt_logprobs import PromptLogprob, PromptLogprobs
from coordinator.core.request import FinishReason
from coordinator.core.request_spec import RequestSpec, TokenPrompt
from coordinator.core.sampling_params import SamplingParams
from coordinator.engine.engine import Engine
from stagecoach.contract.address import Address
from stagecoach.contract.layer_range import LayerRange
from stagecoach.model_files import open_model
from stagecoach.roofline import activation_memory
from tests.clusters import assert_nothing_held, running_engine, running_stage
from tests.layer_ranges import split_evenly
from tests.parity.test_pipeline import expected_tokens
from tests.tiny_models import VOCAB_SIZE, reference_model, tiny_model

torch.set_num_threads(1)

NUM_TOP = 5
BLOCK = 16
"""Tokens a block, the stages' default."""
ONE_STAGE, THREE_STAGES = split_evenly(6, 1), split_evenly(6, 3)


class Scored:
    """What a request with log-probabilities of its prompt brought."""

    def __init__(self) -> None:
        self.prompt: list[PromptLogprob] = []
        self.token_ids: list[int] = []
        self.end: Finished | None = None

    @property
    def num_cached_tokens(self) -> int:
        assert self.end is not None
        return self.end.num_cached_tokens


async def score(engine: Engine, prompt: list[int], **fields: Any) -> Scored:
    """Runs a request to its end; the log-probabilities come in order, once each, before tokens."""
    values: dict[str, Any] = {"prompt_logprobs": NUM_TOP, "max_tokens": 1, "ignore_eos": True}
    spec = RequestSpec(prompt=TokenPrompt(token_ids=tuple(prompt)), **{**values, **fields})
    scored = Scored()
    async for event in await engine.submit(spec):
        match event:
            case PromptLogprobs():
                assert event.start == len(scored.prompt) + 1
                assert not scored.token_ids
                scored.prompt += event
            case TokensEvent():
                scored.token_ids += event.token_ids
            case Finished():
                scored.end = event
    return scored


def create_prompt(length: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCAB_SIZE, (length,), generator=generator).tolist()


def expected_logprobs(path: Path, prompt: list[int]) -> torch.Tensor:
    """float64 `[num_tokens - 1, vocab_size]`, of transformers' logits in float32."""
    reference: Any = reference_model(path)
    with torch.no_grad():
        logits = reference(torch.tensor([prompt])).logits[0, :-1]
    return torch.log_softmax(logits.double(), dim=1)


def assert_equal_to_reference(
    found: list[PromptLogprob], path: Path, prompt: list[int], num_top: int = NUM_TOP
) -> None:
    expected = expected_logprobs(path, prompt)
    assert len(found) == len(prompt) - 1
    for one, row, token_id in zip(found, expected, prompt[1:], strict=True):
        assert one.logprob == pytest.approx(row[token_id].item(), abs=1e-4)
        order = row.argsort(descending=True).tolist()
        assert one.rank == order.index(token_id) + 1
        assert [i for i, _ in one.top] == order[:num_top]
        assert [p for _, p in one.top] == pytest.approx(row[order[:num_top]].tolist(), abs=1e-4)


@pytest.mark.parametrize("family", ["llama", "mistral-window", "gemma2", "qwen3", "cohere"])
@pytest.mark.parametrize(
    ("ranges", "chunk"),
    [(ONE_STAGE, 512), (THREE_STAGES, 512), (THREE_STAGES, 7)],
    ids=["whole", "split", "split in chunks"],
)
async def test_every_token_of_a_prompt_has_the_log_softmax_of_transformers(
    family: str, ranges: list[LayerRange], chunk: int, tmp_path: Path
) -> None:
    path, prompt = tiny_model(family, tmp_path), create_prompt(40)
    async with running_engine(path, ranges, max_num_batched_tokens=chunk) as engine:
        scored = await score(engine, prompt)
    assert_equal_to_reference(scored.prompt, path, prompt)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model("llama-gqa-tied", tmp_path_factory.mktemp("llama"))


async def test_few_rows_of_logits_at_once_give_what_all_give(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = create_prompt(40)
    monkeypatch.setattr(activation_memory, "_PROMPT_LOGITS_BYTES", 3 * 4 * VOCAB_SIZE)
    async with running_engine(llama, ONE_STAGE) as engine:
        scored = await score(engine, prompt)
    assert activation_memory.num_prompt_rows(VOCAB_SIZE) == 3
    assert_equal_to_reference(scored.prompt, llama, prompt)


@pytest.mark.parametrize("num_top", [0, 1, 20])
async def test_as_many_of_the_likeliest_tokens_come_as_were_asked_for(
    num_top: int, llama: Path
) -> None:
    prompt = create_prompt(9)
    async with running_engine(llama, THREE_STAGES) as engine:
        scored = await score(engine, prompt, prompt_logprobs=num_top)
    assert_equal_to_reference(scored.prompt, llama, prompt, num_top)


async def test_sampling_does_not_touch_them(llama: Path) -> None:
    prompt = create_prompt(20)
    sampling = SamplingParams(
        temperature=1.7, seed=3, repetition_penalty=1.5, presence_penalty=1.0, logit_bias={7: 9.0}
    )
    async with running_engine(llama, THREE_STAGES) as engine:
        scored = await score(engine, prompt, sampling=sampling, logprobs=3, max_tokens=4)
    assert_equal_to_reference(scored.prompt, llama, prompt)
    assert len(scored.token_ids) == 4


async def test_a_prompt_of_one_token_has_none(llama: Path) -> None:
    async with running_engine(llama, THREE_STAGES) as engine:
        scored = await score(engine, [5])
    assert scored.prompt == []
    assert len(scored.token_ids) == 1


async def test_a_hot_prefix_cache_is_passed_by_and_serves_others_afterwards(llama: Path) -> None:
    prompt = create_prompt(3 * BLOCK + 5)
    async with running_engine(llama, THREE_STAGES) as engine:
        cold = await score(engine, prompt, prompt_logprobs=None)
        assert (await score(engine, prompt, prompt_logprobs=None)).num_cached_tokens == 3 * BLOCK
        hot = await score(engine, prompt, max_tokens=5)
        after = await score(engine, prompt, prompt_logprobs=None)
    assert_equal_to_reference(hot.prompt, llama, prompt)
    assert hot.num_cached_tokens == 0
    assert after.num_cached_tokens == 3 * BLOCK
    assert cold.token_ids == after.token_ids == hot.token_ids[:1]


async def test_many_at_once_beside_requests_that_want_none(llama: Path) -> None:
    prompts = [create_prompt(5 + 7 * i, seed=i) for i in range(8)]
    async with running_engine(llama, THREE_STAGES, max_num_batched_tokens=24) as engine:
        scored = await asyncio.gather(
            *(
                score(engine, prompt, prompt_logprobs=None if i % 4 == 3 else NUM_TOP, max_tokens=6)
                for i, prompt in enumerate(prompts)
            )
        )
    for i, (one, prompt) in enumerate(zip(scored, prompts, strict=True)):
        assert one.token_ids == expected_tokens(llama, prompt, 6)
        if i % 4 == 3:
            assert one.prompt == []
        else:
            assert_equal_to_reference(one.prompt, llama, prompt)


async def test_a_prompt_of_which_nothing_is_wanted_is_not_computed(llama: Path) -> None:
    prompt = create_prompt(60)
    async with running_engine(llama, THREE_STAGES) as engine:
        nothing = await score(engine, prompt, prompt_logprobs=None, max_tokens=0)
        assert (nothing.prompt, nothing.token_ids) == ([], [])
        assert nothing.end is not None
        assert nothing.end.finish_reason is FinishReason.LENGTH
        assert nothing.end.timings.num_steps == 0
        assert nothing.end.num_prompt_tokens == len(prompt)
        assert nothing.num_cached_tokens == 0
        await engine.wait_idle()
        assert engine.num_requests == 0
        told = await score(engine, prompt, max_tokens=0)
        assert_equal_to_reference(told.prompt, llama, prompt)


async def test_after_a_preemption_each_comes_once_and_is_what_it_was(llama: Path) -> None:
    prompts = [create_prompt(30 + i, seed=i) for i in range(6)]
    # Room for the longest request and little more, so that they push each other out.
    async with running_engine(
        llama, THREE_STAGES, kv_memory_bytes=40 << 10, max_num_batched_tokens=16
    ) as engine:
        scored = await asyncio.gather(*(score(engine, p, max_tokens=40) for p in prompts))
        assert (await engine.status()).num_preemptions > 0
    for one, prompt in zip(scored, prompts, strict=True):
        assert_equal_to_reference(one.prompt, llama, prompt)
        assert one.token_ids == expected_tokens(llama, prompt, 40)


async def test_after_the_loss_of_a_stage_each_comes_once_and_is_what_it_was(llama: Path) -> None:
    """The stage is lost while the prompts are computed, some of whose values came before."""
    prompts = [create_prompt(200 + i, seed=i) for i in range(3)]
    async with AsyncExitStack() as rest:
        victim = AsyncExitStack()
        addresses = [
            await (victim if index == 2 else rest).enter_async_context(
                running_stage(llama, layers, max_num_batched_tokens=8)
            )
            for index, layers in enumerate(THREE_STAGES)
        ]
        config = ClusterConfig(model=str(llama), stages=parse_stages(addresses))
        engine = await open_engine(config, open_model(config.model))
        rest.push_async_callback(engine.close, 0.0)
        streams = [
            await engine.submit(
                RequestSpec(
                    prompt=TokenPrompt(token_ids=prompt),
                    prompt_logprobs=NUM_TOP,
                    max_tokens=3,
                    ignore_eos=True,
                )
            )
            for prompt in prompts
        ]
        events: list[list[GenerationEvent]] = [[] for _ in prompts]
        while not any(isinstance(event, PromptLogprobs) for event in events[0]):
            events[0].append(await anext(streams[0]))
        await victim.aclose()
        assert not any(isinstance(event, TokensEvent) for event in events[0])
        listen = Address.parse(addresses[2], field="listen")
        await rest.enter_async_context(
            running_stage(llama, THREE_STAGES[2], max_num_batched_tokens=8, listen=listen)
        )
        for stream, one in zip(streams, events, strict=True):
            one += [event async for event in stream]
        await assert_nothing_held(engine)
    for one, prompt in zip(events, prompts, strict=True):
        pieces = [event for event in one if isinstance(event, PromptLogprobs)]
        assert [piece.start for piece in pieces] == [
            1 + sum(map(len, pieces[:i])) for i in range(len(pieces))
        ]
        assert_equal_to_reference([row for piece in pieces for row in piece], llama, prompt)
        assert isinstance(one[-1], Finished)
        assert one[-1].timings.num_replays > 0
