"""What is free for a stage on a card that it shares, before KV takes it."""

import pytest
import torch

from stage_server.compute.kv_budget import _free_bytes
from stage_server.core.config import StageConfig
from stagecoach.contract.layer_range import LayerRange
from stagecoach.roofline.kv_memory import CONTEXT_BYTES, default_num_batched_tokens

GIB = 1 << 30


@pytest.mark.parametrize(
    ("share", "free_bytes", "held_bytes", "expected_bytes"),
    [
        (1.0, 6 * GIB, 5 * GIB, 6 * GIB),  # the card is the stage's own: what is free
        # 6 of 12 GiB are the stage's, of which its tensors and CUDA's context hold some.
        (0.5, 6 * GIB, 4 * GIB, 2 * GIB - CONTEXT_BYTES),
        (0.5, GIB // 2, 4 * GIB, GIB // 2),  # the other stage has taken more than its half
        (0.5, 6 * GIB, 6 * GIB, 0),
    ],
)
def test_a_stage_takes_no_more_than_its_share_of_a_card(
    share: float,
    free_bytes: int,
    held_bytes: int,
    expected_bytes: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free_bytes, 12 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: held_bytes)
    config = StageConfig(model="demo", layers=LayerRange(0, 1), device_share=share)
    assert _free_bytes(config, torch.device("cuda:0")) == expected_bytes


def test_cards_below_16_gb_have_smaller_micro_batches_by_what_they_report() -> None:
    reported = {8.0: 512, 11.6: 512, 12.0: 512, 14.7: 2048, 15.6: 2048, 24.0: 2048}
    found = {gib: default_num_batched_tokens(int(gib * GIB)) for gib in reported}
    assert found == reported
    assert default_num_batched_tokens(None) == 2048
