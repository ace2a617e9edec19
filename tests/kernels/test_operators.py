"""Operators of ours on tensors that are not there, and on a device that has no kernels."""

import logging
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from stage_server.compute.kernel_check import failure_of, find_kernels
from stage_server.kernels import kernels
from stage_server.kernels.kernels import Kernels
from stage_server.kernels.operators import MAX_SPLITS
from stage_server.model.module_blueprint import ModuleBlueprint
from stagecoach.contract.layer_range import LayerRange
from stagecoach.contract.precision import DType, Precision
from stagecoach.model_files import open_model
from tests.tiny_models import tiny_model

FLOAT32 = Precision.uniform(DType.FLOAT32)


def test_fakes_have_the_shapes_of_what_they_stand_for() -> None:
    with FakeTensorMode():
        heads = torch.empty(3, 8, 16, dtype=torch.float16, device="cuda")
        cos, swapped_sin, _ = torch.empty(3, 3, 16, dtype=torch.float16, device="cuda").unbind(1)
        keys, values = (torch.empty(20, 2, 16, dtype=torch.float16, device="cuda") for _ in "kv")
        slots = torch.empty(3, dtype=torch.int64, device="cuda")
        query = kernels.rotate_and_store(
            heads,
            cos,
            swapped_sin,
            head_norm=None,
            eps=1e-5,
            slots=slots,
            keys=keys,
            values=values,
        )
        assert (query.shape, query.dtype, query.device) == ((3, 4, 16), heads.dtype, heads.device)
        gate_up = torch.empty(3, 40, device="cuda")
        assert kernels.silu_and_mul(gate_up).shape == (3, 20)
        hidden = torch.empty(3, 40, device="cuda")
        weight = torch.empty(40, device="cuda")
        for part in kernels.add_rms_norm(hidden, hidden, weight, scale=1.0, eps=1e-5):
            assert (part.shape, part.device) == (hidden.shape, hidden.device)
        Kernels(num_processors=28).decode(
            query,
            keys,
            values,
            rows=slots,
            tables=torch.empty(27, dtype=torch.int64, device="cuda"),
            starts=slots,
            lengths=slots,
            max_length=144,
            block_size=16,
            scaling=0.1,
            sliding_window=None,
            softcap=None,
            output=torch.empty_like(query),
        )


def test_parts_fill_the_device_and_depend_on_no_length() -> None:
    of_3060 = Kernels(num_processors=28)
    assert of_3060.num_splits(1, 8, 4096) == 14  # times 8 heads: four blocks a multiprocessor
    assert of_3060.num_splits(1, 8, 256) == 2  # none of less than 128 positions
    assert of_3060.num_splits(96, 40, 4096) == 1
    assert Kernels(num_processors=128).num_splits(1, 1, 131072) == MAX_SPLITS


def test_the_cpu_runs_without_kernels(tmp_path: Path) -> None:
    blueprint = ModuleBlueprint(open_model(str(tiny_model("llama", tmp_path))), LayerRange(0, 1))
    assert find_kernels(blueprint, 16, FLOAT32, torch.device("cpu")) is None


def test_where_kernels_cannot_be_compiled_the_stage_says_why_and_gathers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A card whose machine has no driver stands for one without a compiler: Triton raises."""
    blueprint = ModuleBlueprint(open_model(str(tiny_model("llama", tmp_path))), LayerRange(0, 1))
    cpu = torch.device("cpu")
    reason = failure_of(Kernels(num_processors=1), blueprint, 16, FLOAT32, cpu)
    assert reason
    monkeypatch.setattr(
        "stage_server.compute.kernel_check.failure_of", lambda *_: "no C compiler: install gcc"
    )
    monkeypatch.setattr(
        torch.cuda,
        "get_device_properties",
        lambda _: type("", (), {"multi_processor_count": 28, "major": 8}),
    )
    with caplog.at_level(logging.WARNING):
        assert find_kernels(blueprint, 16, FLOAT32, torch.device("cuda", 0)) is None
    [record] = caplog.records
    assert record.reason == "no C compiler: install gcc"  # type: ignore[attr-defined]
    monkeypatch.setattr("stage_server.compute.kernel_check.failure_of", lambda *_: None)
    found = find_kernels(blueprint, 16, FLOAT32, torch.device("cuda", 0))
    assert found == Kernels(num_processors=28)
