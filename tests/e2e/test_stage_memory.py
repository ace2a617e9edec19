"""A stage holds its own layers and KV, and little else, also while it loads."""

import json
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest

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


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_stage_never_adds_much_more_than_its_own_weights_to_its_imports(
    model: Path, dtype: str
) -> None:
    with ExitStack() as stack:
        stages = []
        for layers in RANGES:
            command = [sys.executable, "-m", "stage_server", "--json", "--exit-with-parent"]
            command += ["--model", str(model), "--layers", str(layers), "--dtype", dtype]
            command += ["--listen", "127.0.0.1:0", "--kv-memory", "32MiB", "--threads", "1"]
            stages.append(
                stack.enter_context(
                    subprocess.Popen(
                        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
                    )
                )
            )
        for stage in stages:
            assert stage.stdout is not None
            ready = json.loads(stage.stdout.readline())
            with grpc.insecure_channel(ready["address"]) as channel:
                stub = stage_pb2_grpc.StageServiceStub(channel)
                info = stub.GetInfo(stage_pb2.GetInfoRequest(), timeout=10)
            allowed = 1.15 * info.weight_bytes + info.kv_bytes + ALLOWANCE_BYTES
            imports = import_bytes(*STAGE_MODULES)
            added = peak_bytes(Path(f"/proc/{stage.pid}/status").read_text()) - imports
            print(
                f"{dtype} {ready['layers']}: weights {info.weight_bytes / 1e6:.0f} MB, KV"
                f" {info.kv_bytes / 1e6:.0f} MB, added to {imports / 1e6:.0f} MB of imports:"
                f" {added / 1e6:.0f} MB, allowed {allowed / 1e6:.0f} MB"
            )
            assert added <= allowed
        whole = sum(path.stat().st_size for path in model.glob("*.safetensors"))
        assert whole > 1.15 * info.weight_bytes + info.kv_bytes  # the model was never whole
        for stage in stages:
            stage.terminate()
            assert stage.wait(30) == 0
