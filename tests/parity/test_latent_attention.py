"""Latent attention through the whole engine: one row a token is kept, and nothing else.

Parity of each family through any number of stages is in `test_layer_stack` and `test_pipeline`.
"""

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch

from stage_server.model.latent_attention import LatentHeads
from stagecoach.model_files import open_model
from stagecoach.model_files.latent_sizes import LatentSizes
from stagecoach.roofline.model_shape import ModelShape
from tests.clusters import generate, running_engine
from tests.layer_ranges import split_evenly
from tests.parity.test_pipeline import create_prompts, expected_tokens
from tests.tiny_models import tiny_model

CASES = ["deepseek_v2", "deepseek_v2-groups", "deepseek_v3", "glm4_moe_lite"]
NUM_TOKENS = 12
ROW = 28
"""Elements that tiny models keep of a token: 20 and 8."""


def test_absorbed_products_are_those_of_expanded_keys_and_values() -> None:
    """The twin makes the keys and values of every head, as the paper defines them."""
    sizes = LatentSizes(kv_rank=20, rope_dim=8, nope_dim=12, value_dim=16, query_rank=None)
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    num_heads, num_tokens, num_positions = 3, 4, 9
    attention = torch.nn.Module()
    attention.kv_b_proj = torch.nn.Linear(20, num_heads * 28, bias=False, dtype=torch.float64)
    weight = attention.kv_b_proj.weight.data.view(num_heads, 28, 20)
    query, rows = random(1, num_heads, num_tokens, 20), random(num_positions, ROW)
    keys = torch.einsum("hdr,pr->hpd", weight[:, :12], rows[:, :20])
    values = torch.einsum("hdr,pr->hpd", weight[:, 12:], rows[:, :20])
    scores = query[0, ..., :12] @ keys.transpose(1, 2) + query[0, ..., 12:] @ rows[:, 20:].T
    expected = (scores.softmax(-1) @ values).transpose(0, 1)

    heads = LatentHeads(attention, sizes)
    with torch.no_grad():
        absorbed = heads.absorbed(query)[0]  # [num_heads, num_tokens, row]
        attended = (absorbed @ rows.T).softmax(-1) @ rows
        found = heads.expanded(attended.transpose(0, 1))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("settings", [{}, {"kv_memory_bytes": 12 * 16 * 6 * ROW * 4}])
async def test_requests_beside_each_other_generate_what_transformers_does(
    case: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    """In little memory too, where they preempt each other and are computed again."""
    path = tiny_model(case, tmp_path)
    prompts = create_prompts(6)
    expected = [expected_tokens(path, prompt, NUM_TOKENS) for prompt in prompts]
    async with running_engine(path, split_evenly(6, 2), **settings) as engine:
        found = await asyncio.gather(*(generate(engine, one, NUM_TOKENS) for one in prompts))
    assert found == expected


async def test_the_pool_holds_one_row_a_token_as_plans_say(tmp_path: Path) -> None:
    path = tiny_model("deepseek_v3", tmp_path)
    config = open_model(str(path)).config
    assert (config.num_kv_heads, config.head_dim, config.num_kv_rows) == (1, ROW, 1)
    async with running_engine(path, split_evenly(6, 2)) as engine:
        infos = [stage.info for stage in (await engine.status()).stages]
    for info in infos:
        assert info is not None
        num_tokens = info.num_kv_blocks * info.kv_block_size
        assert info.kv_bytes == num_tokens * 3 * ROW * 4
        shape = ModelShape.of(config, info.precision)
        assert shape.kv_bytes_per_token_and_layer == ROW * 4


async def test_rows_may_be_kept_in_eight_bits(tmp_path: Path) -> None:
    path = tiny_model("deepseek_v2", tmp_path)
    prompt = create_prompts(1)[0]
    async with running_engine(path, split_evenly(6, 2), kv_dtype="int8") as engine:
        tokens = await generate(engine, prompt, NUM_TOKENS)
        info = (await engine.status()).stages[0].info
    assert info is not None
    assert info.kv_bytes == info.num_kv_blocks * info.kv_block_size * 3 * (ROW + 4)
    assert tokens[:1] == expected_tokens(path, prompt, 1)
