"""MXFP4 experts as gpt-oss publishes them: number by number, beside transformers, and damaged."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from stage_server.model.layer_stack import load_layer_stack
from stagecoach.contract.errors import ModelFilesError, UnsupportedModelError
from stagecoach.contract.precision import INT8
from stagecoach.model_files import open_model
from tests.layer_ranges import split_evenly
from tests.parity.test_layer_stack import CPU, FLOAT32, generate
from tests.parity.test_published_configs import expected_tokens
from tests.tiny_models import NUM_LAYERS, tiny_model

SHAPE: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96}
NUM_EXPERTS = 5
QUANTIZATION = {
    "modules_to_not_convert": [
        "model.layers.*.self_attn",
        "model.layers.*.mlp.router",
        "model.embed_tokens",
        "lm_head",
    ],
    "quant_method": "mxfp4",
}
"""As openai/gpt-oss-20b has it."""

Tensors = dict[str, torch.Tensor]


def published(folder: Path) -> tuple[Path, Path]:
    """A model in MXFP4, and the same in float32, as transformers reads the blocks."""
    plain = tiny_model("gpt_oss", folder, **SHAPE)
    packed = folder / "packed"
    packed.mkdir()
    tensors = load_file(plain / "model.safetensors")
    blocks: Tensors = {}
    generator = torch.Generator().manual_seed(0)
    for layer in range(NUM_LAYERS):
        for leaf, rows, columns in (("gate_up_proj", 192, 64), ("down_proj", 64, 96)):
            name = f"model.layers.{layer}.mlp.experts.{leaf}"
            shape = NUM_EXPERTS, rows, columns // 32
            codes = torch.randint(0, 256, (*shape, 16), generator=generator, dtype=torch.uint8)
            scales = torch.randint(121, 126, shape, generator=generator, dtype=torch.uint8)
            numbers = convert_moe_packed_tensors(codes, scales, dtype=torch.float32)
            assert numbers.shape == tensors[name].shape
            tensors[name] = numbers.contiguous()
            blocks |= {f"{name}_blocks": codes, f"{name}_scales": scales}
    save_file(tensors, plain / "model.safetensors", metadata={"format": "pt"})
    others = {name: each for name, each in tensors.items() if f"{name}_blocks" not in blocks}
    save_file(others | blocks, packed / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((plain / "config.json").read_text())
    config["quantization_config"] = QUANTIZATION
    (packed / "config.json").write_text(json.dumps(config))
    return packed, plain


def stacks(path: Path, num_stages: int, **precision: Any) -> list[Any]:
    return [
        load_layer_stack(
            open_model(str(path)), layers, precision=FLOAT32._replace(**precision), device=CPU
        )
        for layers in split_evenly(NUM_LAYERS, num_stages)
    ]


@pytest.mark.parametrize("num_stages", [1, 3])
def test_it_generates_what_the_plain_model_does(tmp_path: Path, num_stages: int) -> None:
    packed, plain = published(tmp_path)
    tokens, _ = generate(stacks(packed, num_stages))
    assert tokens == expected_tokens(plain)
    assert len(set(tokens)) > 2


def test_codes_are_kept_in_eight_bits_and_have_the_same_numbers(tmp_path: Path) -> None:
    packed, plain = published(tmp_path)
    files, others = open_model(str(packed)), open_model(str(plain))
    assert files.encoding == INT8
    name = "model.layers.2.mlp.experts.{}.gate_up_proj.weight"
    names = [name.format(expert) for expert in range(NUM_EXPERTS)]
    whole = "model.layers.2.mlp.experts.gate_up_proj"
    with files.open_tensors(names) as reader, others.open_tensors([whole]) as other:
        expected = np.asarray(other.read(whole)).swapaxes(1, 2)
        for expert, one in enumerate(names):
            assert reader.info(one).code_bits == 8
            np.testing.assert_array_equal(reader.read(one), expected[expert])
            groups = reader.read_groups(one, 3, 50)
            assert groups.group_size == 32
            np.testing.assert_array_equal(groups.values(), expected[expert][3:50])
    kept = generate(stacks(packed, 2, weights=INT8))[1]
    exact = generate(stacks(plain, 2))[1]
    assert torch.nn.functional.cosine_similarity(kept[0], exact[0], dim=0) > 0.99


def test_the_numbers_of_all_codes_and_scales_are_those_of_transformers(tmp_path: Path) -> None:
    packed, _ = published(tmp_path)
    file = packed / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.0.mlp.experts.down_proj"
    scales = torch.arange(64 * 3 * NUM_EXPERTS).reshape(NUM_EXPERTS, 64, 3) % 250
    tensors[f"{name}_scales"] = scales.to(torch.uint8)
    save_file(tensors, file, metadata={"format": "pt"})
    expected = convert_moe_packed_tensors(
        tensors[f"{name}_blocks"], tensors[f"{name}_scales"], dtype=torch.float32
    )
    one = "model.layers.0.mlp.experts.{}.down_proj.weight"
    names = [one.format(expert) for expert in range(NUM_EXPERTS)]
    with open_model(str(packed)).open_tensors(names) as reader:
        for expert, each in enumerate(names):
            np.testing.assert_array_equal(reader.read(each), expected[expert].T.numpy())
        with pytest.raises(ModelFilesError, match=r"down_proj_scales: a scale is .*must be from"):
            reader.read_groups(names[0], 0, 64)


def rescaled(tensors: Tensors, name: str) -> None:
    tensors[name][1, 2, 0] = 255


def shortened(tensors: Tensors, name: str) -> None:
    tensors[name] = tensors[name][:, :-1].contiguous()


def dropped(tensors: Tensors, name: str) -> None:
    del tensors[name]


def widened(tensors: Tensors, name: str) -> None:
    tensors[name] = tensors[name].to(torch.int16)


def narrowed(tensors: Tensors, name: str) -> None:
    tensors[name] = tensors[name][..., :8].contiguous()


LAYER = "model.layers.1.mlp.experts.gate_up_proj"


@pytest.mark.parametrize(
    ("change", "name", "error", "said"),
    [
        (rescaled, f"{LAYER}_scales", ModelFilesError, r"scale of expert 1 is NaN"),
        (shortened, f"{LAYER}_scales", ModelFilesError, r"_scales has shape \[5, 191, 2\]"),
        (dropped, f"{LAYER}_scales", ModelFilesError, r"no tensor .*gate_up_proj.*_scales"),
        (dropped, f"{LAYER}_blocks", ModelFilesError, r"gate_up_proj"),
        (widened, f"{LAYER}_blocks", UnsupportedModelError, r"_blocks has type I16"),
        (narrowed, f"{LAYER}_blocks", ModelFilesError, r"8 bytes, must have 16"),
        (shortened, f"{LAYER}_bias", ModelFilesError, r"_bias has shape \[5, 191\]"),
    ],
)
def test_a_damaged_checkpoint_is_refused_by_name(
    tmp_path: Path,
    change: Callable[[Tensors, str], None],
    name: str,
    error: type[Exception],
    said: str,
) -> None:
    packed, _ = published(tmp_path)
    file = packed / "model.safetensors"
    tensors = load_file(file)
    change(tensors, name)
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(error, match=said):
        stacks(packed, 1)
