"""What configurations say of quantized safetensors: published ones, refused ones, and nonsense."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from stagecoach.contract.errors import ModelFilesError, UnsupportedModelError
from stagecoach.contract.layer_range import LayerRange
from stagecoach.contract.precision import FEW_BITS, INT4
from stagecoach.model_files import open_model
from stagecoach.model_files.hf_files import HfFiles
from stagecoach.model_files.local_folder import LocalFolder
from stagecoach.model_files.quantization import quantization_in
from tests.loaded_checkpoints import Q_PROJ, grouped, load, read, requantized
from tests.packed_checkpoints import FORMATS, packed_model
from tests.tiny_models import tiny_model

PUBLISHED: dict[str, tuple[dict[str, Any], str]] = {
    "Qwen2.5-7B-Instruct-AWQ": (
        {
            **{"bits": 4, "group_size": 128, "modules_to_not_convert": None},
            **{"quant_method": "awq", "version": "gemm", "zero_point": True},
        },
        "int4",
    ),
    "TinyLlama-1.1B-Chat-v1.0-GPTQ": (
        {
            **{"bits": 4, "group_size": 128, "damp_percent": 0.1, "desc_act": True},
            **{"static_groups": False, "sym": True, "true_sequential": True},
            **{"model_name_or_path": None, "model_file_base_name": "model"},
            "quant_method": "gptq",
        },
        "int8",
    ),
    "GPTQModel 5.7": (
        {
            **{"bits": 4, "group_size": 128, "desc_act": False, "lm_head": False},
            "dynamic": {"-:.*self_attn\\.o_gate.*": {}, "-:.*self_attn\\.z_proj.*": {}},
            **{"quant_method": "gptq", "checkpoint_format": "gptq", "pack_dtype": "int32"},
            "meta": {"quantizer": ["gptqmodel:5.7.0"], "damp_percent": 0.05, "mse": 0.0},
        },
        "int4",
    ),
    "Meta-Llama-3.1-8B-Instruct-FP8-hf": (
        {
            "config_groups": {
                "group_0": {
                    "input_activations": {"num_bits": 8, "strategy": "tensor", "type": "float"},
                    "targets": ["Linear"],
                    "weights": {"num_bits": 8, "strategy": "tensor", "type": "float"},
                }
            },
            **{"format": "naive-quantized", "ignore": ["lm_head"]},
            **{"quant_method": "compressed-tensors", "quantization_status": "frozen"},
        },
        "int8",
    ),
    "llm-compressor W8A8": (
        {
            "config_groups": {
                "group_0": {
                    "input_activations": {"dynamic": True, "num_bits": 8, "strategy": "token"},
                    "output_activations": None,
                    "targets": ["Linear"],
                    "weights": {
                        **{"block_structure": None, "dynamic": False, "group_size": None},
                        **{"num_bits": 8, "observer": "minmax", "strategy": "channel"},
                        **{"symmetric": True, "type": "int"},
                    },
                }
            },
            **{"format": "int-quantized", "ignore": ["lm_head", "embed_tokens"]},
            **{"kv_cache_scheme": None, "quant_method": "compressed-tensors"},
        },
        "int8",
    ),
    "compressed-tensors by a scheme's name": (
        {
            **{"config_groups": {"W4A16": ["Linear"]}, "format": "pack-quantized"},
            "quant_method": "compressed-tensors",
        },
        "int4",
    ),
    "Qwen3-8B-FP8": (
        {
            **{"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8"},
            "weight_block_size": [128, 128],
        },
        "int8",
    ),
    "llama-3-8b-bnb-4bit": (
        {
            **{"_load_in_4bit": True, "_load_in_8bit": False},
            **{"bnb_4bit_compute_dtype": "bfloat16", "bnb_4bit_quant_storage": "uint8"},
            **{"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
            **{"llm_int8_skip_modules": None, "llm_int8_threshold": 6.0},
            **{"load_in_4bit": True, "load_in_8bit": False, "quant_method": "bitsandbytes"},
        },
        "int8",
    ),
    "AutoRound 0.14": (
        {
            **{"quant_method": "auto-round", "packing_format": "auto_round:auto_gptq"},
            **{"bits": 4, "group_size": 128, "sym": True, "data_type": "int", "iters": 0},
            "extra_config": {"lm_head": {"bits": 16, "data_type": "float"}},
        },
        "int4",
    ),
    "NVIDIA ModelOpt": (
        {"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_scheme": None},
        "int8",
    ),
}
"""Settings of published models, shortened where they are lists of modules."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_settings_are_read(name: str) -> None:
    settings, encoding = PUBLISHED[name]
    found = quantization_in({"quantization_config": settings})
    assert found is not None
    assert found.encoding == FEW_BITS[encoding]
    assert quantization_in({"compression_config": settings}) is not None
    assert quantization_in({"quantization_config": None}) is None


REFUSED: list[tuple[dict[str, Any], str]] = [
    *(
        (
            {"quant_method": method},
            f"quantized with {method} (config.json: quantization_config) are",
        )
        for method in (
            *("aqlm", "bitnet", "eetq", "exl3", "higgs", "hqq", "mxfp8", "quanto"),
            *("quip", "spqr", "torchao", "vptq"),
        )
    ),
    ({"bits": 4}, "a method that has no name (config.json: quantization_config)"),
    ({"quant_method": "awq", "bits": 3}, "awq with bits 3"),
    ({"quant_method": "awq", "version": "gemv"}, 'awq version "gemv"'),
    ({"quant_method": "awq", "backend": "llm-awq"}, "awq of backend llm-awq"),
    ({"quant_method": "gptq", "bits": 9}, "gptq with bits 9"),
    (
        {"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"},
        'gptq checkpoint_format "marlin"',
    ),
    (
        {"quant_method": "gptq", "bits": 4, "is_marlin_format": True},
        "gptq for Marlin (is_marlin_format)",
    ),
    ({"quant_method": "gptq", "bits": 4, "pack_dtype": "int8"}, 'gptq pack_dtype "int8"'),
    ({"quant_method": "gptq", "bits": 4, "rotation": "hadamard"}, "gptq and rotation"),
    (
        {"quant_method": "auto-round", "bits": 4, "packing_format": "auto_round:fp8"},
        'auto-round packing_format "auto_round:fp8"',
    ),
    ({"quant_method": "fp8", "fmt": "e5m2"}, 'fp8 fmt "e5m2"'),
    ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, 'modelopt quant_algo "nvfp4"'),
    (
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "af4"},
        'bnb_4bit_quant_type "af4"',
    ),
    *(
        ({"quant_method": "compressed-tensors", "format": form}, f'format "{form}"')
        for form in ("nvfp4-pack-quantized", "mxfp4-pack-quantized", "marlin-24")
    ),
    (
        {
            "quant_method": "compressed-tensors",
            "sparsity_config": {"format": "sparse-24-bitmask"},
        },
        'sparsity format "sparse-24-bitmask"',
    ),
    (
        {
            "quant_method": "compressed-tensors",
            "transform_config": {"config_groups": {"R1": {"type": "hadamard"}}},
        },
        "transforms of compressed-tensors",
    ),
    (
        {
            "quant_method": "compressed-tensors",
            "config_groups": {"a": {"weights": {"num_bits": 4, "actorder": "other"}}},
        },
        'actorder "other"',
    ),
    (
        {"quant_method": "compressed-tensors", "config_groups": {"NVFP4": ["Linear"]}},
        "compressed-tensors scheme NVFP4",
    ),
    (
        {
            "quant_method": "compressed-tensors",
            "config_groups": {"a": {"weights": {"type": "float", "num_bits": 4}}},
        },
        'type and bits ["float", 4]',
    ),
    (
        {
            "quant_method": "compressed-tensors",
            "config_groups": {
                "a": {
                    "format": "mxfp4-pack-quantized",
                    "weights": {"type": "float", "num_bits": 4},
                }
            },
        },
        'format "mxfp4-pack-quantized"',
    ),
]


@pytest.mark.parametrize(("settings", "told"), REFUSED)
def test_other_forms_are_refused_by_name_before_weights_are_read(
    settings: dict[str, Any], told: str, tmp_path: Path
) -> None:
    path = requantized(tiny_model("llama", tmp_path), settings)
    (path / "model.safetensors").unlink()
    with pytest.raises(UnsupportedModelError) as caught:
        load(path)
    assert told in caught.value.message
    assert (
        "take the model that they were made from, or a form of it as GGUF" in caught.value.message
    )


def test_mlx_is_refused_by_name(tmp_path: Path) -> None:
    of_mlx = {"group_size": 64, "bits": 4, "mode": "affine"}
    path = requantized(tiny_model("llama", tmp_path), of_mlx, quantization=of_mlx)
    with pytest.raises(UnsupportedModelError, match=r"with mlx \(config.json: quantization\)"):
        load(path)


ENCODINGS: list[tuple[dict[str, Any], str]] = [
    (grouped({"num_bits": 4, "type": "int", "strategy": "channel"}, format="int-quantized"),
     "int8"),
    (grouped({"num_bits": 4, "strategy": "group", "group_size": 32, "actorder": "group"}), "int8"),
    (grouped({"num_bits": 4, "strategy": "group", "group_size": 32, "actorder": True}), "int8"),
    (grouped({"num_bits": 4, "strategy": "group", "group_size": 32, "actorder": "weight"}),
     "int4"),
    (grouped({"num_bits": 4, "strategy": "channel", "actorder": "weight"}), "int4"),
    ({"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": True}, "int8"),
    ({"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": True,
      "static_groups": True}, "int4"),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "encoding"), ENCODINGS)
def test_settings_say_how_codes_are_kept(settings: dict[str, Any], encoding: str) -> None:
    found = quantization_in({"quantization_config": settings})
    assert found is not None
    assert found.encoding == FEW_BITS[encoding]


NOT_APPLIED: list[tuple[dict[str, Any], list[str]]] = [
    (
        {"quant_method": "compressed-tensors", "config_groups": {name: ["Linear"]}},
        [f"config_groups.{name}"],
    )
    for name in ("FP8_DYNAMIC", "FP8", "W8A8", "W4A8", "INT8")
] + [
    ({"quant_method": "compressed-tensors", "config_groups": {"W4A16": ["Linear"]}}, []),
    ({"quant_method": "fp8", "kv_cache_scheme": "static", "activation_scheme": "dynamic"},
     ["activation_scheme", "kv_cache_scheme"]),
    ({"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_scheme": {"num_bits": 8},
      "config_groups": {"a": {"input_activations": {"num_bits": 8}}}},
     ["config_groups.a.input_activations", "kv_cache_scheme"]),
    ({"quant_method": "modelopt", "quantization": {"quant_algo": "FP8",
      "kv_cache_quant_algo": "FP8"}}, ["quantization.kv_cache_quant_algo"]),
    ({"quant_method": "modelopt", "quant_algo": "FP8"}, []),
    ({"quant_method": "auto-round", "bits": 8, "act_bits": 8}, ["act_bits"]),
    ({"quant_method": "auto-round", "bits": 8, "act_bits": 16}, []),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "keys"), NOT_APPLIED)
def test_settings_of_activations_and_kv_are_named(
    settings: dict[str, Any], keys: list[str]
) -> None:
    found = quantization_in({"quantization_config": settings})
    assert found is not None
    assert list(found.not_applied) == [f"config.json: quantization_config.{key}" for key in keys]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ("awq", 'config.json: quantization_config is "awq", must be an object'),
        ({"quant_method": 4}, "quantization_config.quant_method is 4, must be a text"),
        ({"quant_method": "gptq"}, "quantization_config.bits is null, must be a whole number"),
        ({"quant_method": "gptq", "bits": "4"}, 'quantization_config.bits is "4"'),
        ({"quant_method": "gptq", "bits": 4, "desc_act": 1}, "desc_act is 1, must be true or"),
        ({"quant_method": "gptq", "bits": 4, "dynamic": []}, "dynamic is [], must be an object"),
        ({"quant_method": "fp8", "weight_block_size": 128}, "is 128, must be two sizes"),
        ({"quant_method": "fp8", "weight_block_size": [128, 0]}, "is [128, 0], must be two"),
        ({"quant_method": "awq", "group_size": None, "bits": True}, "bits is true, must be a"),
    ],
)
def test_settings_that_make_no_sense_are_named(settings: object, told: str, tmp_path: Path) -> None:
    path = requantized(tiny_model("llama", tmp_path), settings)
    with pytest.raises(ModelFilesError) as caught:
        load(path)
    assert told in caught.value.message


def test_a_family_that_is_not_served_is_refused_as_such(tmp_path: Path) -> None:
    path = requantized(
        tiny_model("llama", tmp_path), {"quant_method": "mxfp4"}, model_type="mimo_v2_flash"
    )
    with pytest.raises(UnsupportedModelError, match="model type 'mimo_v2_flash' is not served"):
        load(path)


@pytest.mark.parametrize(
    ("name", "file_name", "settings"),
    [
        ("gptq", "quantize_config.json", {"bits": 4, "group_size": 32, "desc_act": False}),
        ("awq", "quant_config.json", {"w_bit": 4, "q_group_size": 32, "version": "GEMM"}),
    ],
)
def test_settings_may_lie_in_a_file_of_their_own(
    name: str, file_name: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    path = packed_model(FORMATS[name], "llama", tmp_path).path
    fingerprint = open_model(str(path)).fingerprint
    requantized(path, None)
    with pytest.raises(UnsupportedModelError, match=r"quantized weights .*qweight"):
        load(path)
    (path / file_name).write_text(json.dumps(settings))
    files = open_model(str(path))
    assert files.fingerprint == fingerprint
    assert files.encoding == files.stored_encoding == INT4
    assert load(path).weight_bytes > 0


class WatchedFolder(LocalFolder):
    """Fails where anything is fetched or opened that a hub would be asked for."""

    watched = False

    def find(self, name: str) -> Path | None:
        assert not self.watched, f"{name} is asked for"
        return super().find(name)

    def find_here(self, name: str) -> Path | None:
        path = self._path / name
        return path if path.is_file() else None

    def tensor_types(self, name: str) -> dict[str, tuple[str, tuple[int, ...]]] | None:
        assert not self.watched, f"{name} is opened"
        return super().tensor_types(name)


@pytest.mark.parametrize("content", ["", "version https://git-lfs.github.com/spec/v1\n"])
def test_a_plain_model_is_planned_without_its_weights(content: str, tmp_path: Path) -> None:
    path = tiny_model("llama", tmp_path)
    (path / "model.safetensors").write_text(content)
    folder = WatchedFolder(path)
    files = HfFiles(folder)
    folder.watched = True
    assert files.encoding is None
    with pytest.raises(AssertionError, match=r"model\.safetensors is opened"):
        _ = files.stored_encoding
    (path / "quantize_config.json").write_text(json.dumps({"bits": 4, "group_size": 32}))
    assert files.encoding == INT4


def test_old_settings_beside_plain_weights_change_nothing(tmp_path: Path) -> None:
    path = tiny_model("llama", tmp_path)
    fingerprint = open_model(str(path)).fingerprint
    (path / "quantize_config.json").write_text(json.dumps({"bits": 4, "group_size": 32}))
    files = open_model(str(path))
    assert files.stored_encoding is None
    assert files.fingerprint == fingerprint


@pytest.mark.parametrize("said", [{}, {"packing_format": None}, {"packing_format": "auto"},
                                  {"packing_format": "auto_round:gptq"},
                                  {"backend": "auto_round:gptq:exllamav2"}])  # fmt: skip
def test_auto_round_packs_as_auto_gptq_where_it_does_not_say_how(
    said: dict[str, object], tmp_path: Path
) -> None:
    checkpoint = packed_model(FORMATS["auto-round"], "llama", tmp_path, num_hidden_layers=1)
    path = requantized(
        checkpoint.path, {"quant_method": "auto-round", "bits": 4, "group_size": 32, **said}
    )
    assert np.array_equal(read(path), read(checkpoint.plain))


def test_what_changes_the_meaning_of_tensors_changes_the_fingerprint(tmp_path: Path) -> None:
    path = packed_model(FORMATS["gptq"], "llama", tmp_path).path
    before = open_model(str(path))
    requantized(path, {**FORMATS["gptq"].settings, "checkpoint_format": "gptq_v2"})
    assert open_model(str(path)).fingerprint != before.fingerprint
    requantized(path, {**FORMATS["gptq"].settings, "damp_percent": 0.1})
    assert open_model(str(path)).fingerprint == before.fingerprint


def test_scales_of_activations_and_kv_are_left_out_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = packed_model(FORMATS["compressed-tensors, FP8"], "llama", tmp_path).path
    settings = json.loads((path / "config.json").read_text())["quantization_config"]
    activations = {"num_bits": 8, "type": "float", "strategy": "tensor"}
    settings["config_groups"]["group_0"]["input_activations"] = activations
    requantized(path, {**settings, "kv_cache_scheme": activations})
    expected = load(path).weight_bytes
    tensors = load_file(path / "model.safetensors")
    tensors[f"{Q_PROJ}.input_scale"] = torch.ones(1)
    tensors["model.layers.1.self_attn.k_scale"] = torch.ones(1)
    save_file(tensors, path / "model.safetensors")
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert load(path).weight_bytes == expected
    [record] = [one for one in caplog.records if "only weights are quantized" in one.message]
    assert record.__dict__["not_applied"] == [
        "config.json: quantization_config.config_groups.group_0.input_activations",
        "config.json: quantization_config.kv_cache_scheme",
    ]


@pytest.mark.parametrize("block", ["48x48", "48X48"])
def test_a_block_may_be_said_in_words(block: str, tmp_path: Path) -> None:
    path = packed_model(FORMATS["fp8"], "llama", tmp_path, num_hidden_layers=1).path
    expected = read(path)
    weights = {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": block}
    assert np.array_equal(read(path, grouped(weights, format="float-quantized")), expected)


def test_awq_without_zeros_of_its_own_stores_the_middle_code(tmp_path: Path) -> None:
    """AutoRound and GPTQModel write `zero_point` so for symmetric codes."""
    path = packed_model(FORMATS["awq"], "llama", tmp_path, num_hidden_layers=1).path
    expected = read(path)
    settings = {**FORMATS["awq"].settings, "zero_point": False, "version": "gemm"}
    assert np.array_equal(read(path, settings), expected)


def test_marlin_beside_old_settings_is_refused_by_name(tmp_path: Path) -> None:
    path = packed_model(FORMATS["gptq"], "llama", tmp_path, num_hidden_layers=1).path
    tensors = load_file(path / "model.safetensors")
    ends = {"qweight": "B", "scales": "s", "qzeros": "workspace"}
    for name in [name for name in tensors if name.rpartition(".")[2] in ends]:
        module, _, end = name.rpartition(".")
        tensors[f"{module}.{ends[end]}"] = tensors.pop(name)
    save_file(tensors, path / "model.safetensors")
    requantized(path, None)
    settings = {"bits": 4, "group_size": 32, "is_marlin_format": True}
    (path / "quantize_config.json").write_text(json.dumps(settings))
    with pytest.raises(UnsupportedModelError, match="gptq for Marlin"):
        load(path, LayerRange(0, 1))
