"""Counts of a prompt at once against counts of its tokens one by one."""

import random
from array import array

import numpy as np
import pytest

from coordinator.core.sampling_params import SamplingParams
from coordinator.sampling.changed_tokens import ChangedTokens

VOCAB_SIZE = 60
PARAMS = SamplingParams(
    repetition_penalty=1.5,
    presence_penalty=0.25,
    frequency_penalty=0.125,
    logit_bias={3: 1.0, 50: -2.0},
)


def change_all(changed: ChangedTokens, logits: np.ndarray) -> np.ndarray:
    result = logits.copy()
    result[changed.ids] = changed.change(logits[changed.ids])
    return result


def slowly(
    logits: np.ndarray, prompt: list[int], output: list[int], barred: list[int]
) -> list[float]:
    """The definitions, a token at a time."""
    result = []
    for token_id, logit in enumerate(logits.tolist()):
        logit += PARAMS.logit_bias.get(token_id, 0.0)
        if token_id in prompt or token_id in output:
            logit = logit / 1.5 if logit > 0 else logit * 1.5
        count = output.count(token_id)
        logit -= 0.125 * count + 0.25 * (count > 0)
        result.append(float("-inf") if token_id in barred else logit)
    return result


@pytest.mark.parametrize("seed", range(20))
def test_a_prompt_at_once_counts_as_its_tokens_one_by_one(seed: int) -> None:
    draw = random.Random(seed)
    logits = np.random.default_rng(seed).normal(size=VOCAB_SIZE)
    prompt = [draw.randrange(VOCAB_SIZE) for _ in range(draw.randrange(80))]
    barred = draw.sample(range(VOCAB_SIZE), 2)
    output: list[int] = []
    changed = ChangedTokens.of(PARAMS, array("I", prompt), barred)
    assert changed is not None
    for _ in range(30):
        np.testing.assert_allclose(
            change_all(changed, logits), slowly(logits, prompt, output, barred)
        )
        assert len(set(changed.ids.tolist())) == len(changed)
        output.append(draw.randrange(VOCAB_SIZE))
        changed.append(output[-1])
