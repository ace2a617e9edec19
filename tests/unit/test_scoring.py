"""Masks of attention, against ones that hide the same another way."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import bias as torch_bias
from torch.nn.attention.bias import CausalVariant, causal_lower_right
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from stage_server.kv_cache.scoring import (
    LOWER_RIGHT,
    Scoring,
    additive_mask,
    attention,
    lower_right_attention,
    takes_lower_right,
)


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
def test_a_lower_right_bias_equals_the_mask_bit_for_bit(
    num_tokens: int, num_positions: int, dtype: torch.dtype
) -> None:
    query = torch.randn(2, 3, num_tokens, 16).to(dtype)
    key, value = torch.randn(2, 2, 1, num_positions, 16).to(dtype).expand(-1, -1, 3, -1, -1)
    own = torch.arange(num_positions - num_tokens, num_positions)[:, None]
    mask = additive_mask(torch.arange(num_positions) <= own, dtype)
    scoring = Scoring(scaling=0.3, sliding_window=None, softcap=None)
    found = attention(query, key, value, mask, scoring)
    for same in (causal_lower_right(num_tokens, num_positions), torch.arange(num_positions) <= own):
        expected = F.scaled_dot_product_attention(query, key, value, attn_mask=same, scale=0.3)
        assert torch.equal(found, expected)


def test_a_lower_right_bias_has_the_number_that_torch_gives_it() -> None:
    assert LOWER_RIGHT == CausalVariant.LOWER_RIGHT


class Calls(TorchDispatchMode):
    """Records attention kernels with what they are given, fake tensors by their shapes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.made: list[tuple[object, object]] = []

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> object:
        if "attention" in func.name():
            given = tree_map(
                lambda value: (
                    (value.shape, value.stride()) if isinstance(value, torch.Tensor) else value
                ),
                (args, kwargs or {}),
            )
            self.made.append((func.name(), given))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("capability", [(7, 5), (8, 6)])
def test_behind_a_context_the_kernels_run_that_torch_chooses_for_its_bias(
    dtype: torch.dtype, capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _=None: capability)
    takes_flash = dtype == torch.float16 and capability >= (8, 0)
    monkeypatch.setattr(torch_bias, "can_use_flash_attention", lambda _: takes_flash)
    monkeypatch.setattr(torch_bias, "can_use_efficient_attention", lambda _: True)
    monkeypatch.setattr(torch_bias, "SDPAParams", lambda *_: None)
    bias = causal_lower_right(5, 30)
    with FakeTensorMode():
        query = torch.empty(2, 3, 5, 16, dtype=dtype, device="cuda")
        key = torch.empty(2, 1, 30, 16, dtype=dtype, device="cuda").expand(-1, 3, -1, -1)
        assert takes_lower_right(query)
        with Calls() as ours:
            found = lower_right_attention(query, key, key, 0.3)
        with Calls() as of_torch:
            F.scaled_dot_product_attention(query, key, key, attn_mask=bias, scale=0.3)
    assert found.shape == query.shape
    assert len(ours.made) == 1
    assert ours.made == of_torch.made


def test_other_devices_and_odd_heads_take_a_mask() -> None:
    assert not takes_lower_right(torch.empty(1, 1, 5, 16))
    with FakeTensorMode():
        assert not takes_lower_right(torch.empty(1, 1, 5, 20, device="cuda"))
        assert not takes_lower_right(torch.empty(1, 1, 5, 264, device="cuda"))
