"""A stage holds its own layers and KV, and little else, also while it loads."""

import json
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from safetensors.numpy import save_file

from stagecoach.v1 import stage_pb2, stage_pb2_grpc
from tests.import_memory import STAGE_MODULES, import_bytes, peak_bytes
from tests.layer_ranges import split_evenly
from tests.tiny_models import tiny_model

ALLOWANCE_BYTES = 75_000_000
"""A forward's activations, gRPC's buffers, what is read of the files at a time."""

SHAPE: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "vocab_size": 8192,
}
RANGES = split_evenly(6, 3)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model("llama", tmp_path_factory.mktemp("model"), **SHAPE)


@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.slow), "float16"])
def test_a_stage_never_adds_much_more_than_its_own_weights_to_its_imports(
    model: Path, dtype: str
) -> None:
    with ExitStack() as stack:
        stages = [
            stack.enter_context(started(model, str(layers), "--dtype", dtype)) for layers in RANGES
        ]
        for stage in stages:
            info = check_memory(stage, dtype)
        whole = sum(path.stat().st_size for path in model.glob("*.safetensors"))
        assert whole > 1.15 * info.weight_bytes + info.kv_bytes  # the model was never whole
        for stage in stages:
            stage.terminate()
            assert stage.wait(30) == 0


def test_a_stage_of_quantized_weights_never_holds_them_in_16_bits(tmp_path: Path) -> None:
    num_elements = write_awq(tmp_path)
    with started(tmp_path, "0:3") as stage:
        info = check_memory(stage, "awq")
        assert 2 * num_elements > 1.15 * info.weight_bytes + info.kv_bytes + ALLOWANCE_BYTES
        stage.terminate()
        assert stage.wait(30) == 0


def started(model: Path, layers: str, *flags: str) -> subprocess.Popen[str]:
    """Starts a stage that says on its output when it is ready."""
    command = [sys.executable, "-m", "stage_server", "--json", "--exit-with-parent"]
    command += ["--model", str(model), "--layers", layers, *flags]
    command += ["--listen", "127.0.0.1:0", "--kv-memory", "32MiB", "--threads", "1"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def check_memory(stage: subprocess.Popen[str], name: str) -> stage_pb2.GetInfoResponse:
    """Waits until a stage is ready, and checks the most memory that it ever took."""
    assert stage.stdout is not None
    ready = json.loads(stage.stdout.readline())
    with grpc.insecure_channel(ready["address"]) as channel:
        stub = stage_pb2_grpc.StageServiceStub(channel)
        info = stub.GetInfo(stage_pb2.GetInfoRequest(), timeout=10)
    allowed = 1.15 * info.weight_bytes + info.kv_bytes + ALLOWANCE_BYTES
    imports = import_bytes(*STAGE_MODULES)
    added = peak_bytes(Path(f"/proc/{stage.pid}/status").read_text()) - imports
    print(
        f"{name} {ready['layers']}: weights {info.weight_bytes / 1e6:.0f} MB, KV"
        f" {info.kv_bytes / 1e6:.0f} MB, added to {imports / 1e6:.0f} MB of imports:"
        f" {added / 1e6:.0f} MB, allowed {allowed / 1e6:.0f} MB"
    )
    assert added <= allowed
    return info


def write_awq(folder: Path) -> int:
    """Writes a Llama of three layers with random codes; returns the elements of their matrices."""
    rng, width, inner = np.random.default_rng(0), 2048, 8192
    shapes = {f"self_attn.{name}_proj": (width, width) for name in "qkvo"}
    shapes |= {"mlp.gate_proj": (inner, width), "mlp.up_proj": (inner, width)}
    shapes |= {"mlp.down_proj": (width, inner)}
    tensors: dict[str, np.ndarray] = {
        name: np.full((4096, width), 0.01, np.float16)
        for name in ("model.embed_tokens.weight", "lm_head.weight")
    }
    tensors["model.norm.weight"] = np.ones(width, np.float16)
    for layer in range(3):
        prefix = f"model.layers.{layer}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}{norm}.weight"] = np.ones(width, np.float16)
        for name, (num_rows, num_columns) in shapes.items():
            for part, rows in (("qweight", num_columns), ("qzeros", num_columns // 128)):
                words = rng.integers(-(2**31), 2**31, (rows, num_rows // 8), np.int64)
                tensors[f"{prefix}{name}.{part}"] = words.astype(np.int32)
            scales = np.full((num_columns // 128, num_rows), 0.003, np.float16)
            tensors[f"{prefix}{name}.scales"] = scales
    save_file(tensors, folder / "model.safetensors")
    config = {
        **{"model_type": "llama", "hidden_size": width, "intermediate_size": inner},
        **{"num_hidden_layers": 3, "num_attention_heads": 16, "vocab_size": 4096},
        **{"max_position_embeddings": 2048, "torch_dtype": "float16"},
        "quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 128},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return 3 * sum(num_rows * num_columns for num_rows, num_columns in shapes.values())
