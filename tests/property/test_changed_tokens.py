"""A prompt is counted at one go as it would be token by token."""

from types import MappingProxyType

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from coordinator.core.sampling_params import SamplingParams
from coordinator.sampling.changed_tokens import ChangedTokens

TOKEN_IDS_END = 301
TOKEN_IDS = st.integers(0, TOKEN_IDS_END - 1)


@given(
    st.lists(TOKEN_IDS, max_size=400),
    st.dictionaries(TOKEN_IDS, st.floats(-100, 100), max_size=100),
    st.lists(TOKEN_IDS, max_size=20),
)
def test_a_prompt_counts_as_its_tokens_one_by_one(
    prompt: list[int], bias: dict[int, float], output: list[int]
) -> None:
    params = SamplingParams(repetition_penalty=1.3, logit_bias=MappingProxyType(bias))
    whole = ChangedTokens.of(params, prompt)
    slow = ChangedTokens.of(params, ())
    assert whole is not None
    assert slow is not None
    for token_id in prompt:
        slow._seen[slow._index(token_id)] = True
    for token_id in output:
        whole.append(token_id)
        slow.append(token_id)
    assert changes_of(whole) == changes_of(slow)


def changes_of(tokens: ChangedTokens) -> dict[int, float]:
    """Changed logits by id, in whatever order they stand."""
    logits = np.linspace(-3, 3, TOKEN_IDS_END)[tokens.ids]
    return dict(zip(tokens.ids.tolist(), tokens.change(logits).tolist(), strict=True))
