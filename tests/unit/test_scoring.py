"""Masks of attention, against ones that hide the same another way."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch.nn.attention.bias import causal_lower_right

from stage_server.kv_cache.scoring import Scoring, additive_mask, attention


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("num_positions", [1, 7, 8, 13])
def test_what_is_added_hides_what_is_not_seen(num_positions: int, dtype: torch.dtype) -> None:
    is_seen = torch.rand(3, 1, 2, num_positions) < 0.5
    is_seen[..., 0] = True
    mask = additive_mask(is_seen, dtype)
    assert mask.dtype == dtype
    assert torch.equal(mask == 0, is_seen)
    assert torch.equal(mask.isneginf(), ~is_seen)
    assert mask.stride(-2) % 8 == 0  # CUDA's kernels read it in place


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("num_tokens", "num_positions"), [(2, 3), (5, 16), (9, 30), (64, 100)])
def test_a_causal_bias_equals_the_mask_bit_for_bit(
    num_tokens: int, num_positions: int, dtype: torch.dtype
) -> None:
    query = torch.randn(2, 3, num_tokens, 16).to(dtype)
    key, value = torch.randn(2, 2, 1, num_positions, 16).to(dtype).expand(-1, -1, 3, -1, -1)
    own = torch.arange(num_positions - num_tokens, num_positions)[:, None]
    mask = additive_mask(torch.arange(num_positions) <= own, dtype)
    scoring = Scoring(scaling=0.3, sliding_window=None, softcap=None)
    bias = causal_lower_right(num_tokens, num_positions)
    found = attention(query, key, value, bias, scoring)
    assert torch.equal(found, attention(query, key, value, mask, scoring))
    boolean = F.scaled_dot_product_attention(
        query, key, value, attn_mask=torch.arange(num_positions) <= own, scale=0.3
    )
    assert torch.equal(found, boolean)
