"""Log-probabilities and constrained tokens through three stages, against transformers' logits."""

import asyncio
from pathlib import Path
from typing import Any

import llguidance
import pytest
import tokenizers
import torch

from coordinator.core.events import TokenLogprobs, TokensEvent
from coordinator.core.grammar import Grammar, GrammarKind
from coordinator.core.request_spec import RequestSpec, TokenPrompt
from coordinator.core.sampling_params import SamplingParams
from coordinator.engine.engine import Engine
from tests.clusters import running_engine
from tests.layer_ranges import split_evenly
from tests.text_models import EOS_TOKEN_ID, tiny_text_model
from tests.tiny_models import reference_model

torch.set_num_threads(1)

PROMPT = (5, 60, 7, 88, 9)
NUM_TOKENS = 12
NUM_TOP = 5
THREE_STAGES = split_evenly(6, 3)

GREEDY = SamplingParams()
SAMPLED = SamplingParams(temperature=0.7, seed=11)
NUCLEUS = SamplingParams(temperature=1.3, top_p=0.8, seed=12)
TOP_K = SamplingParams(temperature=2.0, top_k=9, seed=13)
PENALIZED = SamplingParams(temperature=0.9, seed=14, repetition_penalty=1.4, logit_bias={40: 5.0})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_text_model(tmp_path_factory.mktemp("model"))


async def run(engine: Engine, spec: RequestSpec) -> tuple[list[int], list[TokenLogprobs]]:
    token_ids: list[int] = []
    logprobs: list[TokenLogprobs] = []
    async for event in await engine.submit(spec):
        if isinstance(event, TokensEvent):
            assert len(event.logprobs) == len(event.token_ids)
            token_ids += event.token_ids
            logprobs += event.logprobs
    return token_ids, logprobs


async def test_logprobs_equal_the_log_softmax_of_transformers(model: Path) -> None:
    reference: Any = reference_model(model)
    grammar = Grammar(kind=GrammarKind.REGEX, text="([a-z]{2}|[0-9]{3}){20}")
    specs = [
        RequestSpec(
            prompt=TokenPrompt(token_ids=PROMPT),
            max_tokens=NUM_TOKENS,
            ignore_eos=True,
            sampling=sampling,
            logprobs=NUM_TOP,
            grammar=form,
        )
        for form in (None, grammar)
        for sampling in (GREEDY, SAMPLED, NUCLEUS, TOP_K, PENALIZED)
    ]
    async with running_engine(model, THREE_STAGES) as engine:
        outputs = await asyncio.gather(*(run(engine, spec) for spec in specs))
    for token_ids, logprobs in outputs:
        assert len(logprobs) == len(token_ids) == NUM_TOKENS
        with torch.no_grad():
            logits = reference(torch.tensor([[*PROMPT, *token_ids]])).logits[0]
        expected = torch.log_softmax(logits.double(), dim=1)[len(PROMPT) - 1 : -1]
        for found, row, token_id in zip(logprobs, expected, token_ids, strict=True):
            assert found.logprob == pytest.approx(row[token_id].item(), abs=1e-4)
            top = row.topk(NUM_TOP)
            assert [i for i, _ in found.top] == top.indices.tolist()
            assert [p for _, p in found.top] == pytest.approx(top.values.tolist(), abs=1e-4)


async def test_logprobs_of_the_chosen_token_alone_and_none_at_all(model: Path) -> None:
    prompt = TokenPrompt(token_ids=PROMPT)
    async with running_engine(model, split_evenly(6, 1)) as engine:
        token_ids, logprobs = await run(
            engine, RequestSpec(prompt=prompt, max_tokens=4, ignore_eos=True, logprobs=0)
        )
        assert [one.top for one in logprobs] == [()] * len(token_ids) == [()] * 4
        spec = RequestSpec(prompt=prompt, max_tokens=4, ignore_eos=True)
        events = [
            event async for event in await engine.submit(spec) if isinstance(event, TokensEvent)
        ]
        assert [event.logprobs for event in events] == [()] * len(events)


async def test_greedy_constrained_tokens_are_the_highest_that_the_grammar_allows(
    model: Path,
) -> None:
    """The twin masks whole rows of transformers' logits with a matcher of its own."""
    text = r'\{"k": "(ab|[x-z]{2}|é){2,6}", "n": (true|null|-?[1-9][0-9]{0,3})\}'
    spec = RequestSpec(
        prompt=TokenPrompt(token_ids=PROMPT),
        max_tokens=200,
        logprobs=0,
        grammar=Grammar(kind=GrammarKind.REGEX, text=text),
    )
    async with running_engine(model, THREE_STAGES) as engine:
        token_ids, _ = await run(engine, spec)
    reference: Any = reference_model(model)
    serialized = tokenizers.Tokenizer.from_file(str(model / "tokenizer.json")).to_str()
    vocab_size = reference.config.vocab_size
    matcher = llguidance.LLMatcher(
        llguidance.LLTokenizer(serialized, n_vocab=vocab_size, eos_token=EOS_TOKEN_ID),
        llguidance.LLMatcher.grammar_from_regex(text),
    )
    for position, token_id in enumerate(token_ids):
        with torch.no_grad():
            logits = reference(torch.tensor([[*PROMPT, *token_ids[:position]]])).logits[0, -1]
        allowed = torch.tensor(list(matcher.compute_logit_bias()), dtype=torch.bool)
        assert token_id == logits.masked_fill(~allowed[:vocab_size], -torch.inf).argmax().item()
        assert matcher.consume_token(token_id)
    assert matcher.is_stopped()
