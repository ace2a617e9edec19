"""F31 to F33, and F13: a stage server that cannot start says why in one line and stays small."""

import json
import os
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest
from safetensors.numpy import load_file, save_file

from tests.import_memory import RUN_MEASURED, STAGE_MODULES, import_and_end_bytes
from tests.packed_checkpoints import FORMATS, packed_model
from tests.tiny_models import tiny_gguf, tiny_model

START_S = 300.0
BOUND_BYTES = 100 << 20
"""Of what a stage that gives up may have added to its imports."""


class Outcome(NamedTuple):
    """How a stage server ended."""

    code: int
    line: str
    peak_bytes: int
    elapsed_s: float


def start(model: Path, layers: str = "0:6") -> Outcome:
    """Starts a stage server that is expected to give up."""
    started_s = time.monotonic()
    command = [sys.executable, "-m", "stage_server", "--model", str(model), "--layers", layers]
    flags = ["--listen", "127.0.0.1:0", "--kv-memory", "1MiB", "--threads", "1"]
    done = subprocess.run(
        [sys.executable, "-c", RUN_MEASURED, *command, *flags, "--log-level", "error"],
        capture_output=True,
        text=True,
        check=True,
        timeout=START_S + 30,
    )
    lines = done.stderr.splitlines()
    assert len(lines) == 1, lines
    code, peak_kib = map(int, done.stdout.split())
    return Outcome(code, lines[0], peak_kib * 1024, time.monotonic() - started_s)


def refused(model: Path, *told: str, layers: str = "0:6") -> None:
    """Asserts that a model is refused in one line, with these words in it, in bounded memory."""
    outcome = start(model, layers)
    assert outcome.code == 1
    for text in told:
        assert text in outcome.line
    assert outcome.peak_bytes - import_and_end_bytes(*STAGE_MODULES) < BOUND_BYTES
    assert outcome.elapsed_s < START_S


def safetensors_header(path: Path) -> tuple[dict[str, dict[str, object]], bytes]:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def write_safetensors(path: Path, header: dict[str, dict[str, object]], body: bytes) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_model("llama", tmp_path)


def test_f31_truncated_safetensors_are_refused_with_file_and_sizes(folder: Path) -> None:
    path = folder / "model.safetensors"
    size = path.stat().st_size
    os.truncate(path, size - 1000)
    refused(folder, "model.safetensors", str(size - 1000), str(size))


@pytest.mark.slow
def test_f31_truncated_gguf_is_refused_with_file_and_sizes(tmp_path: Path) -> None:
    path = tiny_gguf("llama", tmp_path)
    size = path.stat().st_size
    os.truncate(path, size - 1000)
    refused(path, path.name, str(size - 1000))


@pytest.mark.parametrize("header_bytes", [2**63, 2**40, 2**31])
@pytest.mark.slow
def test_f32_a_header_that_claims_to_be_huge_is_refused(folder: Path, header_bytes: int) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(struct.pack("<Q", header_bytes) + data[8:])
    refused(folder, "model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("claim", ["huge", "overlapping", "wrong-shaped"])
def test_f32_tensors_that_contradict_the_file_are_refused(folder: Path, claim: str) -> None:
    path = folder / "model.safetensors"
    header, body = safetensors_header(path)
    name = "model.layers.0.mlp.up_proj.weight"
    tensor = header[name]
    if claim == "huge":
        tensor["shape"] = [2**31, 2**31]
        tensor["data_offsets"] = [0, 2**62 * 4]
    elif claim == "overlapping":
        tensor["data_offsets"] = header["model.layers.1.mlp.up_proj.weight"]["data_offsets"]
    else:
        tensor["shape"] = list(reversed(tensor["shape"]))  # type: ignore[call-overload]
    write_safetensors(path, header, body)
    refused(folder, name if claim == "wrong-shaped" else "model.safetensors")


def test_f33_a_missing_shard_is_refused_by_name(tmp_path: Path) -> None:
    folder = tiny_model("llama", tmp_path, max_shard_size="60KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 2
    shards[1].unlink()
    refused(folder, shards[1].name)


@pytest.mark.slow
def test_f33_missing_layers_are_refused_by_name(folder: Path) -> None:
    path = folder / "model.safetensors"
    header, body = safetensors_header(path)
    name = "model.layers.3.mlp.up_proj.weight"
    header["model.layers.3.mlp.other.weight"] = header.pop(name)
    write_safetensors(path, header, body)
    refused(folder, name)


@pytest.mark.parametrize(("layers", "told"), [("0:7", "0:7"), ("9:12", "9:12")])
@pytest.mark.slow
def test_f13_a_range_that_the_model_does_not_have_is_refused(
    folder: Path, layers: str, told: str
) -> None:
    refused(folder, told, layers=layers)


@pytest.mark.slow
def test_f13_a_model_that_is_not_there_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "nothing-here", "nothing-here")


def test_weights_quantized_in_another_form_are_named(tmp_path: Path) -> None:
    path = tiny_model("llama", tmp_path)
    config = json.loads((path / "config.json").read_text())
    settings = {"quantization_config": {"quant_method": "aqlm"}}
    (path / "config.json").write_text(json.dumps({**config, **settings}))
    refused(path, "weights quantized with aqlm (config.json: quantization_config) are not served")


def test_a_scale_that_is_no_number_is_named(tmp_path: Path) -> None:
    path = packed_model(FORMATS["awq"], "llama", tmp_path).path
    tensors = load_file(path / "model.safetensors")
    tensors["model.layers.3.mlp.up_proj.scales"][0, 0] = float("nan")
    save_file(tensors, path / "model.safetensors")
    refused(path, "model.layers.3.mlp.up_proj.scales is damaged: a scale is no number")
