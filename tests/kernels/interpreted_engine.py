"""A whole stage by kernels, in Triton's interpreter, against the same stage without them."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from stage_server.compute.kernel_check import failure_of
from stage_server.compute.torch_engine import TorchEngine
from stage_server.core.batch import ForwardBatch, SequenceSlice
from stage_server.core.config import StageConfig
from stage_server.kernels import twins
from stage_server.kernels.kernels import Kernels
from stage_server.model.fused_layers import FusedLayers
from stage_server.model.layer_stack import load_layer_stack, no_kernels
from stage_server.model.module_blueprint import ModuleBlueprint
from stagecoach.contract.layer_range import LayerRange
from stagecoach.contract.precision import DType, KvFormat, Precision
from stagecoach.contract.slot_ops import ForkSlot
from stagecoach.model_files import open_model
from tests.recorded_decodes import add_graphs
from tests.tiny_models import tiny_model

FLOAT32 = Precision.uniform(DType.FLOAT32)
CPU = torch.device("cpu")
MIDDLE = LayerRange(2, 4)
KERNELS = Kernels(num_processors=4)
IS_LEAN = {
    "llama": True,
    "qwen3": True,
    "granite": True,
    "mistral-window": True,
    "gemma2": False,
}


def create_engine(
    path: Path, kernels: Kernels | None, precision: Precision = FLOAT32
) -> TorchEngine:
    config = StageConfig(model=str(path), layers=MIDDLE, kv_memory_bytes=1 << 20, max_num_seqs=4)
    files = open_model(config.model)
    stack = load_layer_stack(
        files,
        MIDDLE,
        precision=precision,
        device=CPU,
        find_kernels=no_kernels if kernels is None else lambda _: kernels,
    )
    return TorchEngine(config, files, stack)


@pytest.fixture(params=IS_LEAN)
def family(request: pytest.FixtureRequest) -> str:
    name = request.param
    assert isinstance(name, str)
    return name


@pytest.fixture
def path(family: str, tmp_path: Path) -> Path:
    return tiny_model(family, tmp_path)


def steps(hidden_size: int) -> Iterator[ForwardBatch]:
    """First chunks, a later one beside decodes, decodes, and a decode after a fork."""
    generator = torch.Generator().manual_seed(0)
    for slices, ops in (
        ([SequenceSlice(0, 0, 2), SequenceSlice(1, 0, 17)], ()),
        ([SequenceSlice(1, 17, 1), SequenceSlice(0, 2, 3), SequenceSlice(2, 0, 1)], ()),
        ([SequenceSlice(2, 1, 1), SequenceSlice(0, 5, 1), SequenceSlice(1, 18, 1)], ()),
        ([SequenceSlice(3, 18, 1)], (ForkSlot(1, 3, 18),)),
    ):
        num_tokens = sum(piece.num_tokens for piece in slices)
        hidden = torch.randn(num_tokens, hidden_size, generator=generator)
        yield ForwardBatch(slices=tuple(slices), slot_ops=ops, hidden_states=hidden)


def test_every_kind_of_step_equals_its_twin(path: Path, family: str) -> None:
    fused, plain = create_engine(path, KERNELS), create_engine(path, None)
    assert (fused.info.attention, plain.info.attention) == ("kernel", "gather")
    assert isinstance(fused._forward_pass.stack._layers, FusedLayers) == IS_LEAN[family]
    assert fused.info.weight_bytes == plain.info.weight_bytes
    for batch in steps(plain.info.hidden_size):
        found, expected = (engine.forward(batch).hidden_states for engine in (fused, plain))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["qwen3", "gemma2"], indirect=True)
def test_recorded_decodes_equal_those_of_the_twin(path: Path) -> None:
    """Of lean layers, and of others."""
    fused, plain = create_engine(path, KERNELS), create_engine(path, None)
    recorder = add_graphs(fused, sizes=(4,))
    for batch in steps(plain.info.hidden_size):
        found, expected = (engine.forward(batch).hidden_states for engine in (fused, plain))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert recorder.replays == [4, 4]


@pytest.mark.parametrize(
    ("family", "kv_format"),
    [
        ("llama", KvFormat.INT8),
        ("mistral-window", KvFormat.FLOAT16),
        ("gemma2", KvFormat.INT8),
        ("gemma2", KvFormat.FLOAT16),
    ],
    indirect=["family"],
)
def test_every_kind_of_step_equals_its_twin_over_narrow_kv(path: Path, kv_format: KvFormat) -> None:
    """Either format under lean layers and others, and where scores are capped or a window ends."""
    precision = FLOAT32._replace(kv=kv_format)
    fused, plain = (create_engine(path, kernels, precision) for kernels in (KERNELS, None))
    assert fused.info.kv_bytes == plain.info.kv_bytes
    for batch in steps(plain.info.hidden_size):
        found, expected = (engine.forward(batch).hidden_states for engine in (fused, plain))
        # A number on the verge of two codes becomes one here and the other there.
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("family", "kv_format"),
    [
        ("llama", KvFormat.FLOAT32),
        ("qwen3", KvFormat.INT8),
        ("granite", KvFormat.FLOAT32),
        ("mistral-window", KvFormat.INT8),
        ("gemma2", KvFormat.FLOAT32),
        ("gemma2", KvFormat.INT8),
    ],
    indirect=["family"],
)
def test_the_check_at_start_passes(path: Path, kv_format: KvFormat) -> None:
    """Every family, and either format under lean layers and others."""
    blueprint = ModuleBlueprint(open_model(str(path)), MIDDLE)
    precision = FLOAT32._replace(kv=kv_format)
    assert failure_of(KERNELS, blueprint, 16, precision, CPU) is None


def test_the_check_at_start_names_what_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blueprint = ModuleBlueprint(open_model(str(tiny_model("llama", tmp_path))), MIDDLE)
    monkeypatch.setattr(twins, "silu_and_mul", lambda gate_up: gate_up.chunk(2, -1)[0] + 1)
    failure = failure_of(KERNELS, blueprint, 16, FLOAT32, CPU)
    assert failure is not None
    assert failure.startswith("gate differs from its twin by ")
