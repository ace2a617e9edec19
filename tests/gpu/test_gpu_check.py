"""What the check of a card does on one, as far as a card that is not there can show it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.gpu_check import kernels, parity, parity_1b, shortage
from benchmarks.gpu_check.bandwidth import nominal_bytes_per_s
from benchmarks.gpu_check.decode_times import DecodeTime
from benchmarks.gpu_check.memory_taken import memory_taken
from benchmarks.gpu_check.speed import _client_figure, _stage_figure
from benchmarks.gpu_check.subject import Subject
from stage_server.compute.cuda_cards import ChosenDevice, CudaCard
from stagecoach.roofline.capability import Capability
from stagecoach.roofline.devices import gpu_named
from tests.gpu.fake_card import CUDA, FakeCard

MIB = 1 << 20
NUM_LAYERS = 22
MOVED_BYTES = 2_070_000_000
"""By a decode of one sequence of the model of 1.1 B."""


def create_subject(capability: Capability) -> Subject:
    card = CudaCard("a card", capability)
    return Subject(chosen=ChosenDevice("cuda:0", card), folder=Path(), is_quick=False)


def rows_of(module: Any, capability: Capability) -> set[str]:
    return set(module.names(create_subject(capability)))


def test_every_family_is_compared_in_the_dtypes_that_a_stage_takes() -> None:
    ampere, turing = (rows_of(parity, Capability(*each)) for each in ((8, 6), (7, 5)))
    assert {"llama float32", "llama float16", "llama bfloat16", "gemma2 bfloat16"} <= ampere
    assert not {"gemma2 float16", "gemma3_text float16", "glm4 float16"} & ampere
    assert turing == {name for name in ampere if not name.endswith("bfloat16")}


def test_the_model_of_1b_and_kernels_are_not_compared_in_a_dtype_that_the_card_lacks() -> None:
    for module in (parity_1b, kernels):
        assert any("bfloat16" in name for name in rows_of(module, Capability(8, 0)))
        assert not any("bfloat16" in name for name in rows_of(module, Capability(7, 5)))


def test_kernels_over_kv_of_8_bits_are_compared_in_every_dtype_of_16() -> None:
    found = rows_of(kernels, Capability(8, 0))
    over_codes = {name.removesuffix(", KV in int8") for name in found if "int8" in name}
    of_16_bits = {
        name for name in found if name.endswith(("6", "bfloat16")) and "products" not in name
    }
    assert over_codes == of_16_bits


def test_on_a_card_a_row_that_does_not_fit_is_shown_to_fail() -> None:
    assert any(
        "a single row fails" in name for name in shortage.names(create_subject(Capability(8, 6)))
    )


@pytest.mark.parametrize("left_bytes", [64 * MIB, 200 * MIB])
def test_so_much_memory_is_left_and_all_of_it_is_given_back(left_bytes: int) -> None:
    with FakeCard(memory_bytes=12 << 30, used_bytes=3 * MIB) as card:
        free_bytes = card.free_bytes
        with memory_taken(CUDA, left_bytes):
            assert left_bytes <= card.free_bytes < left_bytes + 20 * MIB
        assert card.free_bytes == free_bytes


def test_the_clock_of_the_memory_gives_the_bandwidth_of_the_data_sheet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    properties = SimpleNamespace(memory_clock_rate=7_501_000, memory_bus_width=192)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    published = gpu_named("rtx-3060-12gb").bandwidth_bytes_per_s
    assert nominal_bytes_per_s(CUDA) == pytest.approx(published, rel=1e-3)
    properties.memory_clock_rate = 0
    assert nominal_bytes_per_s(CUDA) is None


@pytest.mark.parametrize(
    ("bandwidth", "batch", "least"),
    [(330e9, 1, 0.6), (330e9, 96, 0.35), (4.2e12, 1, 0.0835)],
    ids=["3060, batch 1", "3060, batch 96", "H200, batch 1"],
)
def test_decoding_is_judged_by_bandwidth_or_where_that_is_ample_by_launches(
    bandwidth: float, batch: int, least: float
) -> None:
    figure = _stage_figure(batch, DecodeTime(0.01, MOVED_BYTES), bandwidth, NUM_LAYERS)
    assert figure.limit.least == pytest.approx(least, rel=1e-3)
    assert figure.value == pytest.approx(MOVED_BYTES / bandwidth / 0.01)
    assert figure.is_of_cards


def test_what_is_outside_of_the_stage_is_the_difference_of_two_steps() -> None:
    figure = _client_figure(8, 400.0, DecodeTime(0.015, MOVED_BYTES))
    assert figure.value == pytest.approx(5.0)
    assert figure.limit.most == pytest.approx(4.8)
