"""The engine's formats of numbers: what it takes, keeps and gives is each of its own format."""

from pathlib import Path

import pytest
import torch

from stage_server.compute.torch_engine import TorchEngine
from stage_server.core.batch import ForwardBatch, SequenceSlice
from stage_server.core.config import StageConfig
from stage_server.model.layer_stack import load_layer_stack
from stagecoach.contract.layer_range import LayerRange
from stagecoach.contract.precision import DType, Encoding, KvFormat, Precision
from stagecoach.model_files import open_model
from tests.tiny_models import tiny_model

MIDDLE = LayerRange(2, 4)
FLOAT32 = Precision.uniform(DType.FLOAT32)


def create_engine(path: Path, precision: Precision) -> TorchEngine:
    config = StageConfig(model=str(path), layers=MIDDLE, kv_memory_bytes=1 << 20, max_num_seqs=2)
    files = open_model(config.model)
    stack = load_layer_stack(files, MIDDLE, precision=precision, device=torch.device("cpu"))
    return TorchEngine(config, files, stack)


def run(engine: TorchEngine, hidden_states: torch.Tensor, start: int = 0) -> torch.Tensor:
    """What the engine makes of the next tokens of its first sequence."""
    piece = SequenceSlice(0, start, len(hidden_states))
    output = engine.forward(ForwardBatch(slices=(piece,), hidden_states=hidden_states))
    assert output.hidden_states is not None
    return output.hidden_states


def test_hidden_states_travel_in_an_encoding_of_their_own(tmp_path: Path) -> None:
    path = tiny_model("llama", tmp_path)
    hidden = torch.linspace(-1, 1, 5 * 48).view(5, 48).bfloat16()
    narrow = FLOAT32._replace(wire=Encoding.plain(DType.BFLOAT16))
    engine, wide = create_engine(path, narrow), create_engine(path, FLOAT32)
    assert str(engine.info.precision) == (
        "float32 weights, float32 arithmetic, float32 KV, bfloat16 on the wire"
    )
    assert engine.info.weight_bytes == wide.info.weight_bytes
    assert engine.info.kv_bytes == wide.info.kv_bytes
    engine.warm_up()
    # All else is computed as without, and rounded once.
    assert torch.equal(run(engine, hidden), run(wide, hidden.float()).bfloat16())


def test_the_memory_of_kv_follows_its_own_dtype(tmp_path: Path) -> None:
    path = tiny_model("llama", tmp_path)
    wide = create_engine(path, FLOAT32).info
    narrow = create_engine(path, FLOAT32._replace(kv=KvFormat.FLOAT16)).info
    assert narrow.num_kv_blocks == wide.num_kv_blocks
    assert 2 * narrow.kv_bytes == wide.kv_bytes
    codes = create_engine(path, FLOAT32._replace(kv=KvFormat.INT8)).info
    head_dim = open_model(str(path)).config.head_dim
    assert codes.kv_bytes * 4 * head_dim == wide.kv_bytes * (head_dim + 4)


@pytest.mark.parametrize("kv", [KvFormat.FLOAT16, KvFormat.BFLOAT16, KvFormat.INT8])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_kv_is_rounded_to_its_own_format_and_computed_in_that_of_the_arithmetic(
    tmp_path: Path, family: str, kv: KvFormat
) -> None:
    """Its dtype was counted, and the first token of such a stage failed."""
    path = tiny_model(family, tmp_path)
    hidden = torch.linspace(-1, 1, 8 * 48).view(8, 48)
    wide = create_engine(path, FLOAT32)
    narrow = create_engine(path, FLOAT32._replace(kv=kv))
    exact, rounded = run(wide, hidden), run(narrow, hidden)
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, exact)
    most = 0.1 if kv is KvFormat.INT8 else 0.02
    torch.testing.assert_close(rounded, exact, rtol=most, atol=most)
    narrow.free_all_slots()
    pieces = [run(narrow, hidden[a:b], a) for a, b in ((0, 4), (4, 7), (7, 8))]
    torch.testing.assert_close(torch.cat(pieces), rounded, rtol=0.005, atol=0.005)


def test_float16_on_a_cpu_is_that_of_the_weights_alone(tmp_path: Path) -> None:
    engine = create_engine(tiny_model("llama", tmp_path), Precision.of("float16", on_cpu=True))
    assert str(engine.info.precision) == (
        "float16 weights, float32 arithmetic, float32 KV, float32 on the wire"
    )
    assert run(engine, torch.ones(5, 48)).dtype == torch.float32
