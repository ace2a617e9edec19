"""Quantized safetensors: what tools wrote, what is refused, and what files say wrongly."""

import hashlib
import json
import logging
import math
import os
import re
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from stage_server.model.layer_stack import LayerStack, load_layer_stack
from stage_server.model.lean_blueprint import is_plain
from stagecoach.contract.errors import ModelFilesError, StagecoachError, UnsupportedModelError
from stagecoach.contract.layer_range import LayerRange
from stagecoach.contract.precision import FEW_BITS, INT4, DType, Precision
from stagecoach.model_files import open_model
from stagecoach.model_files.hf_files import HfFiles
from stagecoach.model_files.local_folder import LocalFolder
from stagecoach.model_files.packed_matrix import unpacked
from stagecoach.model_files.packed_scaled import E4M3
from stagecoach.model_files.quantization import quantization_in
from tests.packed_checkpoints import FORMATS, packed_bits, packed_model
from tests.tiny_models import NUM_LAYERS, tiny_model

RECORDED = Path(__file__).parents[1] / "recorded_checkpoints"
WHOLE = LayerRange(0, NUM_LAYERS)
Q_PROJ = "model.layers.0.self_attn.q_proj"
DOWN_PROJ = "model.layers.0.mlp.down_proj"


def load(path: Path, layers: LayerRange = WHOLE) -> LayerStack:
    files = open_model(str(path))
    precision = Precision.uniform(DType.FLOAT32)
    if files.encoding is not None:
        precision = precision._replace(weights=files.encoding)
    return load_layer_stack(files, layers, precision=precision, device=torch.device("cpu"))


def requantized(path: Path, settings: object, **more: object) -> Path:
    """Writes other settings into a model's configuration."""
    file = path / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "quantization_config": settings, **more}))
    return path


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


def _grouped(*weights: Mapping[str, object], **more: object) -> dict[str, object]:
    groups = {f"group_{index}": {"weights": each} for index, each in enumerate(weights)}
    return {"quant_method": "compressed-tensors", "config_groups": groups, **more}


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
            *("aqlm", "bitnet", "eetq", "exl3", "higgs", "hqq", "mxfp4", "mxfp8", "quanto"),
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
    (_grouped({"num_bits": 4, "type": "int", "strategy": "channel"}, format="int-quantized"),
     "int8"),
    (_grouped({"num_bits": 4, "strategy": "group", "group_size": 32, "actorder": "group"}), "int8"),
    (_grouped({"num_bits": 4, "strategy": "group", "group_size": 32, "actorder": True}), "int8"),
    (_grouped({"num_bits": 4, "strategy": "group", "group_size": 32, "actorder": "weight"}),
     "int4"),
    (_grouped({"num_bits": 4, "strategy": "channel", "actorder": "weight"}), "int4"),
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
        tiny_model("llama", tmp_path), {"quant_method": "mxfp4"}, model_type="gpt_oss"
    )
    with pytest.raises(UnsupportedModelError, match="model type 'gpt_oss' is not served"):
        load(path)


Edit = Callable[[dict[str, torch.Tensor]], None]


def _set(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Edit:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name] = change(tensors[name]).contiguous().clone()

    return edit


def _without(name: str) -> Edit:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        del tensors[name]

    return edit


def _and(name: str, make: Callable[[], torch.Tensor]) -> Edit:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name] = make()

    return edit


def _with_first(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(tensor: torch.Tensor) -> torch.Tensor:
        flat = tensor.clone().flatten()
        flat[0] = value
        return flat.view(tensor.shape)

    return change


_STATE = f"{DOWN_PROJ}.weight.quant_state.bitsandbytes__nf4"

DAMAGED: list[tuple[str, Edit, str]] = [
    *(
        (name, _set(f"{DOWN_PROJ}.{part}", _with_first(value)), f"{DOWN_PROJ}.{part} is damaged")
        for name, part in (
            ("awq", "scales"),
            ("gptq", "scales"),
            ("compressed-tensors, int4", "weight_scale"),
            ("fp8", "weight_scale_inv"),
            ("bitsandbytes, int8", "SCB"),
            ("bitsandbytes, nf4", "weight.nested_absmax"),
        )
        for value in (math.nan, math.inf)
    ),
    ("fp8", _set(f"{DOWN_PROJ}.weight", lambda old: (old.float() * math.nan).to(old.dtype)),
     f"{DOWN_PROJ}.weight is damaged: an element is no finite number"),
    ("awq", _set(f"{DOWN_PROJ}.qweight", lambda old: old[:, :-1]), f"{DOWN_PROJ}.scales has shape"),
    ("awq", _set(f"{DOWN_PROJ}.qzeros", lambda old: old[:, :-1]), f"{DOWN_PROJ}.qzeros has shape"),
    ("awq", _set(f"{DOWN_PROJ}.qweight", lambda old: old[:100]),
     f"tensors of {DOWN_PROJ} do not fit together: group_size 32 does not divide 100 columns"),
    ("awq", _set(f"{DOWN_PROJ}.qweight", lambda old: old[0]), "must have 2 dimensions"),
    ("awq", _set(f"{DOWN_PROJ}.qweight", lambda old: old.long()),
     f"{DOWN_PROJ}.qweight has type I64, must be I32"),
    *((name, _set(f"{DOWN_PROJ}.{part}", lambda old: old[:, :0]), "none of them 0")
      for name, part in (("awq", "qweight"), ("gptq", "qzeros"), ("fp8", "weight"),
                         ("compressed-tensors, int4", "weight_packed"))),
    ("bitsandbytes, nf4", _set(_STATE, lambda old: old.repeat(1000)), "at most 65536 are read"),
    ("awq", _without(f"{DOWN_PROJ}.scales"), f"there is no tensor {DOWN_PROJ}.scales"),
    ("gptq", _set(f"{DOWN_PROJ}.qweight", lambda old: old[:-1]), "does not divide 120 columns"),
    ("gptq", _set(f"{DOWN_PROJ}.qzeros", lambda old: old[:, :4]),
     f"{DOWN_PROJ} do not fit together: 4 words of qzeros for 64 rows are codes of 2 bits"),
    ("gptq", _set(f"{DOWN_PROJ}.g_idx", _with_first(7)), "g_idx has groups 0 to 7, there are 4"),
    ("gptq", _set(f"{DOWN_PROJ}.g_idx", lambda old: old[:-1]), f"{DOWN_PROJ}.g_idx has shape"),
    ("compressed-tensors, int4",
     _set(f"{DOWN_PROJ}.weight_packed", lambda old: old[:, :-1]),
     f"{DOWN_PROJ} do not fit together: weight_packed has shape [64, 15], weight_shape says"),
    ("compressed-tensors, int4",
     _set(f"{DOWN_PROJ}.weight_scale", lambda old: old[:, :-1]),
     "group_size 32 does not divide 128 columns into 3 groups"),
    ("compressed-tensors, int4, asymmetric",
     _set(f"{DOWN_PROJ}.weight_zero_point", lambda old: old[:-1]),
     f"{DOWN_PROJ}.weight_zero_point has shape [7, 4]"),
    ("compressed-tensors, int4, asymmetric",
     _and(f"{DOWN_PROJ}.weight_zero_point", lambda: torch.full((64, 4), -9, dtype=torch.int8)),
     "weight_zero_point has -9 to -9, must be from -8 to 7 in 4 bits"),
    ("compressed-tensors, int4, asymmetric",
     _and(f"{DOWN_PROJ}.weight_zero_point", lambda: torch.full((1,), 1 << 16, dtype=torch.int32)),
     "weight_zero_point has 65536 to 65536, must be from -8 to 7 in 4 bits"),
    ("compressed-tensors, int-quantized",
     _set(f"{DOWN_PROJ}.weight_scale", lambda old: old[:-1]),
     "weight_scale has shape [63, 1], weight [64, 128]: must be of the tensor, its rows"),
    ("fp8", _set(f"{DOWN_PROJ}.weight_scale_inv", lambda old: old[:, :-1]),
     "weight_scale_inv has shape [2, 2], weight [64, 128]"),
    ("fp8", _set(f"{DOWN_PROJ}.weight", lambda old: old.to(torch.float8_e5m2)),
     f"{DOWN_PROJ}.weight has type F8_E5M2, must be F8_E4M3 or I8: take the model that"),
    ("bitsandbytes, nf4", _set(f"{DOWN_PROJ}.weight", lambda old: old[:-1]),
     f"{DOWN_PROJ}.weight has 4095 bytes, {DOWN_PROJ} takes 4096"),
    ("bitsandbytes, nf4", _set(f"{DOWN_PROJ}.weight.absmax", lambda old: old[:-1]),
     f"{DOWN_PROJ}.weight.absmax has shape [127]"),
    ("bitsandbytes, nf4", _set(_STATE, lambda old: old[:-1]), f"{_STATE} is not JSON"),
    ("bitsandbytes, nf4", _without(_STATE), f"there is no tensor {_STATE}"),
    ("bitsandbytes, int8", _set(f"{DOWN_PROJ}.weight_format", lambda old: old + 1),
     f"{DOWN_PROJ} do not fit together: weight_format is not 0"),
    ("bitsandbytes, int8", _set(f"{DOWN_PROJ}.weight_format", lambda old: old.double()),
     f"{DOWN_PROJ}.weight_format has type F64"),
    ("bitsandbytes, nf4", _set(f"{DOWN_PROJ}.weight.quant_map", lambda old: old.double()),
     f"{DOWN_PROJ}.weight.quant_map has type F64"),
    ("gptq, symmetric",
     _set(f"{DOWN_PROJ}.bias", lambda old: old[:-1]),
     f"{DOWN_PROJ}.bias has shape [63], must be [64]"),
    ("fp8", _and(f"{DOWN_PROJ}.weight_scale", lambda: torch.ones(1)),
     f"{DOWN_PROJ} do not fit together: there are weight_scale and weight_scale_inv"),
    ("bitsandbytes, nf4", _and(_STATE.replace("nf4", "fp4"), lambda: torch.ones(1).byte()),
     f"{DOWN_PROJ} do not fit together: there are weight.quant_state.bitsandbytes__nf4 and"),
    ("bitsandbytes, nf4", _without(f"{DOWN_PROJ}.weight.nested_absmax"),
     f"there is no tensor {DOWN_PROJ}.weight.nested_absmax"),
    ("gptq, symmetric",
     _set(f"{DOWN_PROJ}.bias", _with_first(1)),
     f"{DOWN_PROJ}.bias is not 0, and the model has no such bias"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "edit", "told"), DAMAGED)
def test_tensors_that_do_not_fit_are_named(
    name: str, edit: Edit, told: str, tmp_path: Path
) -> None:
    path = packed_model(FORMATS[name], "llama", tmp_path).path
    tensors = load_file(path / "model.safetensors")
    edit(tensors)
    save_file(tensors, path / "model.safetensors")
    with pytest.raises(StagecoachError) as caught:
        load(path)
    assert isinstance(caught.value, ModelFilesError | UnsupportedModelError)
    assert told in caught.value.message
    assert load(path, LayerRange(2, 3)).weight_bytes > 0, "other layers are sound"


CHANGES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "flat": lambda old: old.flatten(),
    "of one more dimension": lambda old: old[None],
    "empty": lambda old: old.flatten()[:0],
    "transposed": lambda old: old.T if old.dim() == 2 else old.repeat(2),
    "shorter": lambda old: old[:-1] if old.dim() else old[None],
    "of another type": lambda old: old.to(torch.float64),
    "of ones in its bits": lambda old: (
        torch.full_like(old.flatten().view(torch.uint8), 255).view(old.dtype).view(old.shape)
    ),
}


@pytest.mark.parametrize("name", FORMATS)
def test_whatever_a_tensor_is_no_error_is_of_another_class(name: str, tmp_path: Path) -> None:
    """A change may leave a matrix valid; what is not is refused in words."""
    path = packed_model(FORMATS[name], "llama", tmp_path, num_hidden_layers=1).path
    sound = load_file(path / "model.safetensors")
    messages = []
    for tensor in (name for name in sound if name.startswith(DOWN_PROJ)):
        for change in CHANGES.values():
            changed = {**sound, tensor: change(sound[tensor]).contiguous().clone()}
            save_file(changed, path / "model.safetensors")
            try:
                load(path, LayerRange(0, 1))
            except (ModelFilesError, UnsupportedModelError) as error:
                messages.append(error.message)
    assert len(messages) > 4
    assert all(DOWN_PROJ in message for message in messages)


STRANGE: list[object] = [
    *(None, True, "64", [], {}, 0, -1, 0.5, math.nan, math.inf, 1e300),
    *(2**31, 2**63, 2**64, 10**30, 10**400, 10**4000),
    *([64], [[], []], [0, 0], [128, 64], [2**62, 2], [10**4000, 10**4000]),
]
"""What a value of JSON may be instead."""


def refusals(path: Path, changes: Iterator[object]) -> list[str]:
    """Reads a matrix after each change of a model's files.

    Returns:
        Messages where it was refused; an error of another class is raised.
    """
    messages = []
    for _ in changes:
        try:
            files = open_model(str(path))
            load(path, LayerRange(0, 1)) if files.encoding is None else read(path)
        except (ModelFilesError, UnsupportedModelError) as error:
            messages.append(error.message)
    return messages


def read(path: Path, settings: object = None) -> np.ndarray:
    """Reads a matrix, with other settings than the configuration has."""
    name = f"{DOWN_PROJ}.weight"
    if settings is not None:
        requantized(path, settings)
    with open_model(str(path)).open_tensors([name]) as reader:
        if reader.info(name).code_bits is not None:
            reader.read_groups(name, 0, 3)
        return reader.read(name)


@pytest.mark.parametrize("key", ["blocksize", "nested_blocksize", "nested_offset", "shape"])
def test_whatever_a_state_says_no_error_is_of_another_class(key: str, tmp_path: Path) -> None:
    path = packed_model(FORMATS["bitsandbytes, nf4"], "llama", tmp_path, num_hidden_layers=1).path
    sound = load_file(path / "model.safetensors")
    state = json.loads(sound[_STATE].numpy().tobytes())
    scales = (f"{DOWN_PROJ}.weight.absmax", f"{DOWN_PROJ}.weight.nested_absmax")

    def changes() -> Iterator[object]:
        for value in STRANGE:
            text = json.dumps({**state, key: value}).encode()
            said = {_STATE: torch.from_numpy(np.frombuffer(text, np.uint8).copy())}
            for fewer in ({}, {name: sound[name][:1] for name in scales}):
                save_file({**sound, **fewer, **said}, path / "model.safetensors")
                yield value

    messages = refusals(path, changes())
    assert len(messages) > len(STRANGE)
    assert all(DOWN_PROJ in message and len(message) < 300 for message in messages)


def _replaced(settings: Any, value: object) -> Iterator[Any]:
    """Copies of settings, in each of which another one of the values is replaced."""
    yield value
    for key, old in settings.items():
        changed = _replaced(old, value) if isinstance(old, dict) else [value]
        yield from ({**settings, key: new} for new in changed)


@pytest.mark.parametrize("name", FORMATS)
def test_whatever_the_settings_say_no_error_is_of_another_class(name: str, tmp_path: Path) -> None:
    """Scales of one row fit the largest block, and those of one column the widest group."""
    path = packed_model(FORMATS[name], "llama", tmp_path, num_hidden_layers=1).path
    settings = {**FORMATS[name].settings, "group_size": 32, "weight_block_size": [48, 48]}
    sound = load_file(path / "model.safetensors")
    scale = next((each for each in sound if each.startswith(f"{DOWN_PROJ}.weight_scale")), None)

    def changes() -> Iterator[object]:
        for rows in (1, 64):
            if scale is not None:
                save_file({**sound, scale: sound[scale][:rows]}, path / "model.safetensors")
            for value in (*STRANGE, [2**31 - 1, 48], [48, 2**31 - 1]):
                for changed in _replaced(settings, value):
                    requantized(path, changed)
                    yield value

    messages = refusals(path, changes())
    assert len(messages) > 2 * len(STRANGE)
    assert all(len(message) < 700 for message in messages)


def _reshaped(
    path: Path, tensor: str, shape: list[int], dtype: str = "", num_bytes: int = 0
) -> None:
    """Gives a tensor of a file other bytes, at the end of it; they are a hole of zeros."""
    file = path / "model.safetensors"
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    old, end = header[tensor], len(data) - 8 - length
    size = old["data_offsets"][1] - old["data_offsets"][0]
    unread = {"dtype": "U8", "shape": [size], "data_offsets": old["data_offsets"]}
    header[f"{tensor}.rotary_emb.inv_freq"] = unread
    offsets = [end, end + num_bytes]
    header[tensor] = {"dtype": dtype or old["dtype"], "shape": shape, "data_offsets": offsets}
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    os.truncate(file, 8 + len(text) + end + num_bytes)


@pytest.mark.parametrize("name", FORMATS)
def test_whatever_shape_a_tensor_has_no_error_is_of_another_class(
    name: str, tmp_path: Path
) -> None:
    path = packed_model(FORMATS[name], "llama", tmp_path, num_hidden_layers=1).path
    file = path / "model.safetensors"
    sound = file.read_bytes()
    tensors = [each for each in load_file(file) if each.startswith(DOWN_PROJ)]
    shapes = [
        [0, 2**70],
        [2**70, 0],
        [0, 2**40, 2**40],
        [0, 2**62],
        [0] * 100,
        [0],
        [0, 0],
        [64, 0],
    ]
    for tensor in tensors:
        for shape in shapes:
            file.write_bytes(sound)
            _reshaped(path, tensor, shape)
            with pytest.raises((ModelFilesError, UnsupportedModelError)) as caught:
                load(path, LayerRange(0, 1))
            assert DOWN_PROJ in caught.value.message


@pytest.mark.parametrize(
    ("name", "part", "dtype", "shape"),
    [
        ("gptq, symmetric", "bias", "F32", [1 << 28]),
        ("gptq, act-order", "g_idx", "I32", [1 << 28]),
        ("compressed-tensors, act-order", "weight_g_idx", "I32", [1 << 28]),
        ("compressed-tensors, int4", "weight_shape", "I64", [1 << 27]),
        ("bitsandbytes, nf4", _STATE.removeprefix(f"{DOWN_PROJ}."), "U8", [1 << 30]),
    ],
)
def test_a_tensor_that_fits_nothing_is_refused_before_it_is_read(
    name: str, part: str, dtype: str, shape: list[int], tmp_path: Path
) -> None:
    path = packed_model(FORMATS[name], "llama", tmp_path, num_hidden_layers=1).path
    _reshaped(path, f"{DOWN_PROJ}.{part}", shape, dtype, 1 << 30)
    with most_memory(50_000_000), pytest.raises(ModelFilesError, match=rf"{DOWN_PROJ}"):
        load(path, LayerRange(0, 1))


@contextmanager
def most_memory(num_bytes: int) -> Iterator[None]:
    """Checks how much the arrays inside take at most."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < num_bytes
    finally:
        tracemalloc.stop()


def test_columns_of_a_matrix_that_fits_no_model_are_not_ordered(tmp_path: Path) -> None:
    """Its headers fit each other; how large it may be is known only after they were read."""
    path = packed_model(FORMATS["gptq, act-order"], "llama", tmp_path, num_hidden_layers=1).path
    num_columns = 1 << 23
    for part, shape in (("qweight", [num_columns // 8, 8]), ("g_idx", [num_columns])):
        _reshaped(path, f"{DOWN_PROJ}.{part}", shape, "I32", 4 * math.prod(shape))
    for part, width, dtype in (("qzeros", 1, "I32"), ("scales", 8, "F32")):
        shape = [num_columns // 32, width]
        _reshaped(path, f"{DOWN_PROJ}.{part}", shape, dtype, 4 * math.prod(shape))
    with most_memory(50_000_000), pytest.raises(ModelFilesError, match=r"at most \d+ are read"):
        load(path, LayerRange(0, 1))


def test_a_block_larger_than_its_matrix_takes_no_more_memory(tmp_path: Path) -> None:
    path = packed_model(FORMATS["fp8"], "llama", tmp_path, num_hidden_layers=1).path
    tensors = load_file(path / "model.safetensors")
    scales = tensors[f"{DOWN_PROJ}.weight_scale_inv"] = torch.tensor([[2.0, 3.0, 4.0, 5.0]])
    save_file(tensors, path / "model.safetensors")
    requantized(path, {**FORMATS["fp8"].settings, "weight_block_size": [100_000_000, 32]})
    with most_memory(50_000_000):
        found = torch.from_numpy(read(path))
    numbers = tensors[f"{DOWN_PROJ}.weight"].float()
    assert torch.equal(found, numbers * scales.repeat_interleave(32, dim=1))


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_that_is_cut_off_is_refused(name: str, tmp_path: Path) -> None:
    path = packed_model(FORMATS[name], "llama", tmp_path).path
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelFilesError, match=r"model\.safetensors is truncated"):
        load(path)


def test_a_tensor_of_other_bytes_than_its_shape_has_is_refused(tmp_path: Path) -> None:
    path = packed_model(FORMATS["awq"], "llama", tmp_path).path
    file = path / "model.safetensors"
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header[f"{Q_PROJ}.qweight"]["shape"][0] -= 1
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    with pytest.raises(ModelFilesError, match=rf"{Q_PROJ}\.qweight.* has \d+ bytes"):
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


@pytest.mark.parametrize(
    ("name", "packed"),
    [
        ("awq", "qweight"),
        ("gptq", "qweight"),
        ("compressed-tensors, int4", "weight_packed"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.int8])
def test_a_matrix_that_is_stored_twice_is_refused(
    name: str, packed: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    path = packed_model(FORMATS[name], "llama", tmp_path).path
    tensors = load_file(path / "model.safetensors")
    tensors[f"{Q_PROJ}.weight"] = torch.zeros(64, 64, dtype=dtype)
    save_file(tensors, path / "model.safetensors")
    told = f"there are {Q_PROJ}.weight and {Q_PROJ}.{packed}, must be one of them"
    with pytest.raises(ModelFilesError, match=re.escape(told)):
        load(path)


@pytest.mark.parametrize("swapped", [False, True])
def test_blocks_that_fit_a_matrix_in_two_ways_are_refused(swapped: bool, tmp_path: Path) -> None:
    """Blocks of 40 rows and of 48 make two of 64."""
    path = packed_model(FORMATS["fp8"], "llama", tmp_path, num_hidden_layers=1).path
    blocks = [[48, 48], [40, 48]]
    weights = [
        {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": block}
        for block in (blocks[::-1] if swapped else blocks)
    ]
    requantized(path, _grouped(*weights, format="float-quantized"))
    told = r"its rows, or blocks of 40 x 48, or blocks of 48 x 48, and of one of them alone"
    with pytest.raises(ModelFilesError, match=told):
        load(path, LayerRange(0, 1))
    for one in weights:
        assert read(path, _grouped(one, format="float-quantized")).any()


def test_codes_whose_bits_are_in_doubt_are_refused(tmp_path: Path) -> None:
    """128 columns take 16 words in 4 bits; of few columns, codes of 3 bits take as many."""
    path = packed_model(FORMATS["compressed-tensors, int4"], "llama", tmp_path).path
    tensors = load_file(path / "model.safetensors")
    for part, made in (
        ("weight_packed", torch.zeros(64, 1, dtype=torch.int32)),
        ("weight_shape", torch.tensor([64, 8])),
        ("weight_scale", torch.ones(64, 1)),
    ):
        tensors[f"{DOWN_PROJ}.{part}"] = made
    save_file(tensors, path / "model.safetensors")
    assert (read(path, _grouped({"num_bits": 4, "strategy": "channel"})) == -8).all()
    both = _grouped(*({"num_bits": bits, "strategy": "channel"} for bits in (3, 4)))
    with pytest.raises(ModelFilesError, match="in codes of 3 or 4 bits, of which one must fit"):
        read(path, both)


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


def test_digests_tell_quantized_weights_apart(tmp_path: Path) -> None:
    path = packed_model(FORMATS["awq"], "llama", tmp_path).path
    before = open_model(str(path)).weight_digests()
    tensors = load_file(path / "model.safetensors")
    tensors["model.layers.3.mlp.up_proj.qweight"][0, 0] ^= 1
    save_file(tensors, path / "model.safetensors")
    after = open_model(str(path)).weight_digests()
    assert {part for part in before if before[part] != after[part]} == {"layer 3"}


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


@pytest.mark.parametrize("block", ["48x48", "48X48"])
def test_a_block_may_be_said_in_words(block: str, tmp_path: Path) -> None:
    path = packed_model(FORMATS["fp8"], "llama", tmp_path, num_hidden_layers=1).path
    expected = read(path)
    weights = {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": block}
    assert np.array_equal(read(path, _grouped(weights, format="float-quantized")), expected)


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
