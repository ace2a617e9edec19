import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, rotate_half

from stage_server.model.rotary import Rotary

MAX_NUM_POSITIONS = 5000
HIDDEN = torch.zeros(1)


def make_rotary() -> Rotary:
    config = LlamaConfig(
        hidden_size=64, num_attention_heads=4, max_position_embeddings=MAX_NUM_POSITIONS
    )
    return Rotary(LlamaRotaryEmbedding(config), None, 3, max_num_positions=MAX_NUM_POSITIONS)


@pytest.mark.parametrize(
    "positions", [[0], [7, 3, 3], [1023, 1024], [MAX_NUM_POSITIONS - 1, 0], list(range(40))]
)
def test_what_is_looked_up_is_what_is_computed(positions: list[int]) -> None:
    rotary = make_rotary()
    rotary.at(HIDDEN, torch.tensor([2]), 3)  # a table that may have to grow
    ids = torch.tensor(positions)
    found = rotary.at(HIDDEN, ids, max(positions) + 1)
    assert len(found) == 3
    cos, sin = rotary.compute(HIDDEN, ids, None)
    torch.testing.assert_close(found[0].cos_sin, (cos, sin), rtol=0, atol=0)


def test_swapped_sin_goes_with_swapped_halves() -> None:
    [rows, *_] = make_rotary().at(HIDDEN, torch.arange(5), 5)
    x = torch.randn(5, 16)
    assert torch.equal(rotate_half(x) * rows.sin, x.roll(8, -1) * rows.swapped_sin)
