"""Quantized safetensors: their numbers are those that the tools that wrote them unpack."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from stage_server.model.layer_stack import load_layer_stack
from stage_server.model.lean_blueprint import is_plain
from stagecoach.contract.layer_range import LayerRange
from stagecoach.contract.precision import DType, Precision
from stagecoach.model_files import open_model
from stagecoach.model_files.packed_matrix import unpacked
from stagecoach.model_files.packed_scaled import E4M3
from tests.loaded_checkpoints import DOWN_PROJ, Q_PROJ, load, read, requantized
from tests.packed_checkpoints import FORMATS, packed_bits, packed_model

RECORDED = Path(__file__).parents[1] / "recorded_checkpoints"


class TestRecorded:
    """`tests/recorded_checkpoints/README.md` says who wrote them."""

    @pytest.fixture(params=sorted(path.name for path in RECORDED.iterdir() if path.is_dir()))
    def recorded(self, request: pytest.FixtureRequest) -> Path:
        return RECORDED / str(request.param)

    def test_numbers_are_those_that_the_tool_unpacks(self, recorded: Path) -> None:
        expected = json.loads((recorded / "unpacked.json").read_text())["tensors"]
        files = open_model(str(recorded))
        with files.open_tensors(files.tensor_names) as reader:
            for name, facts in expected.items():
                numbers = torch.from_numpy(reader.read(name)) + 0.0  # -0 is 0
                assert list(numbers.shape) == facts["shape"] == list(reader.info(name).shape)
                theirs = numbers.to(getattr(torch, facts["dtype"]))
                assert theirs.flatten()[:4].tolist() == pytest.approx(facts["first"], rel=1e-3)
                data = theirs.contiguous().view(torch.uint8).numpy().tobytes()
                assert hashlib.sha256(data).hexdigest() == facts["sha256"], name

    def test_a_stage_loads_it_and_nothing_is_left_over(self, recorded: Path) -> None:
        plain = load_layer_stack(
            open_model(str(recorded)),
            LayerRange(0, 1),
            precision=Precision.uniform(DType.FLOAT32),
            device=torch.device("cpu"),
        )
        assert load(recorded, LayerRange(0, 1)).weight_bytes < plain.weight_bytes

    def test_rows_are_the_same_however_they_are_read(self, recorded: Path) -> None:
        files = open_model(str(recorded))
        name = f"{Q_PROJ}.weight"
        with files.open_tensors([name]) as reader:
            whole = reader.read(name)
            parts = [reader.read(name, start, start + 1) for start in range(len(whole))]
            assert np.array_equal(np.concatenate(parts), whole)
            assert np.array_equal(reader.read(name, 3, 21), whole[3:21])


def test_digests_tell_quantized_weights_apart(tmp_path: Path) -> None:
    path = packed_model(FORMATS["awq"], "llama", tmp_path).path
    before = open_model(str(path)).weight_digests()
    tensors = load_file(path / "model.safetensors")
    tensors["model.layers.3.mlp.up_proj.qweight"][0, 0] ^= 1
    save_file(tensors, path / "model.safetensors")
    after = open_model(str(path)).weight_digests()
    assert {part for part in before if before[part] != after[part]} == {"layer 3"}


def test_static_fp8_of_transformers_is_read(tmp_path: Path) -> None:
    """Its `FP8Linear` has one scale of the tensor, and one of what comes in."""
    path = packed_model(FORMATS["fp8"], "llama", tmp_path, num_hidden_layers=1).path
    tensors = load_file(path / "model.safetensors")
    for name in [name for name in tensors if name.endswith("weight_scale_inv")]:
        tensors[name] = torch.tensor(0.5)
        tensors[f"{name.removesuffix('weight_scale_inv')}activation_scale"] = torch.tensor(1.0)
    for end in ("act_scale", "input_scale_ub", "k_zero_point", "v_zero_point"):
        tensors[f"{Q_PROJ}.{end}"] = torch.ones(1)
    save_file(tensors, path / "model.safetensors")
    requantized(path, {"quant_method": "fp8", "activation_scheme": "static"})
    numbers = tensors[f"{DOWN_PROJ}.weight"].float()
    assert torch.equal(torch.from_numpy(read(path)), numbers * 0.5)
    assert load(path, LayerRange(0, 1)).weight_bytes > 0


def test_fp8_with_powers_of_two_for_scales(tmp_path: Path) -> None:
    """DeepSeek-V3.1 stores exponents: `F8_E8M0`."""
    path = packed_model(FORMATS["fbgemm_fp8"], "llama", tmp_path).path
    tensors = load_file(path / "model.safetensors")
    name = f"{Q_PROJ}.weight_scale"
    powers = torch.exp2(tensors[name].log2().ceil())
    tensors[name] = powers.to(torch.float8_e8m0fnu)
    save_file(tensors, path / "model.safetensors")
    files = open_model(str(path))
    with files.open_tensors([f"{Q_PROJ}.weight"]) as reader:
        found = torch.from_numpy(reader.read(f"{Q_PROJ}.weight"))
    assert torch.equal(found, tensors[f"{Q_PROJ}.weight"].float() * powers)


def test_packed_bytes_may_be_stored_as_another_type(tmp_path: Path) -> None:
    """`bnb_4bit_quant_storage` is bfloat16 where FSDP shards the weights."""
    path = packed_model(FORMATS["bitsandbytes, nf4"], "llama", tmp_path).path
    name = f"{Q_PROJ}.weight"
    with open_model(str(path)).open_tensors([name]) as reader:
        expected = reader.read(name)
    tensors = load_file(path / "model.safetensors")
    tensors[name] = tensors[name].flatten().view(torch.bfloat16)[:, None]
    save_file(tensors, path / "model.safetensors")
    with open_model(str(path)).open_tensors([name]) as reader:
        assert np.array_equal(reader.read(name), expected)


@pytest.mark.parametrize("columns", [48, 80])
@pytest.mark.parametrize("name", ["compressed-tensors, int8", "fbgemm_fp8", "bitsandbytes, int8"])
def test_rows_of_no_whole_groups_are_plain_numbers(name: str, columns: int, tmp_path: Path) -> None:
    checkpoint = packed_model(FORMATS[name], "llama", tmp_path, hidden_size=columns)
    files, plain = open_model(str(checkpoint.path)), open_model(str(checkpoint.plain))
    tensor = f"{Q_PROJ}.weight"
    with files.open_tensors([tensor]) as reader, plain.open_tensors([tensor]) as twin:
        assert reader.info(tensor).code_bits is None
        assert np.array_equal(reader.read(tensor), twin.read(tensor))
    assert load(checkpoint.path).weight_bytes > 0


def test_a_quantized_llama_is_loaded_without_transformers(tmp_path: Path) -> None:
    path = packed_model(FORMATS["awq"], "llama", tmp_path).path
    assert is_plain(open_model(str(path)).config)


@pytest.mark.parametrize("num_bits", range(1, 9))
def test_codes_are_unpacked_from_any_bits(num_bits: int) -> None:
    codes = np.random.default_rng(num_bits).integers(0, 1 << num_bits, (3, 96), np.uint8)
    words = np.stack([packed_bits(row, num_bits) for row in codes])
    assert np.array_equal(unpacked(words.astype(np.int32), num_bits), codes)


def test_numbers_of_8_bits_are_those_of_torch() -> None:
    theirs = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    torch.testing.assert_close(torch.from_numpy(E4M3), theirs, rtol=0, atol=0, equal_nan=True)
