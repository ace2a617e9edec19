"""Quantized checkpoints: a stage of one computes with the numbers that its format says."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from stage_server.model.layer_stack import LayerStack, load_layer_stack
from stagecoach.contract.errors import ModelFilesError
from stagecoach.contract.layer_range import LayerRange
from stagecoach.contract.precision import FEW_BITS, INT4, INT8, DType, Encoding, Precision
from stagecoach.model_files import open_model
from tests.layer_ranges import split_evenly
from tests.packed_checkpoints import FORMATS, Checkpoint, Format, Packed, packed_model
from tests.parity.test_few_bits import Twin, difference
from tests.parity.test_layer_stack import PROMPT, SplitModel, generate
from tests.tiny_models import NUM_LAYERS

torch.set_num_threads(1)

CPU = torch.device("cpu")
FLOAT32 = Precision.uniform(DType.FLOAT32)

FAMILIES = [
    *(("llama", name) for name in FORMATS),
    *(("phi3", name) for name in ("awq", "gptq", "fp8", "bitsandbytes, nf4")),
    *(("qwen2", name) for name in ("gptq, act-order", "compressed-tensors, int4")),
    ("llama-biases", "gptq, symmetric"),
    ("gemma2", "compressed-tensors, int4, asymmetric"),
    ("starcoder2", "bitsandbytes, int8"),
]
"""Phi-3 has one matrix for query, key and value, and one for gate and up."""


@pytest.fixture(scope="module", params=FAMILIES, ids=" in ".join)
def model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Checkpoint]:
    case, name = request.param
    return name, packed_model(FORMATS[name], case, tmp_path_factory.mktemp("models"))


def load(path: Path, num_stages: int, weights: Encoding | None = None) -> list[LayerStack]:
    files = open_model(str(path))
    precision = FLOAT32 if weights is None else FLOAT32._replace(weights=weights)
    return [
        load_layer_stack(files, layers, precision=precision, device=CPU)
        for layers in split_evenly(files.config.num_layers, num_stages)
    ]


def test_what_a_checkpoint_stands_for_is_read_exactly(model: tuple[str, Checkpoint]) -> None:
    """In float32 its logits are those of a plain checkpoint of the same numbers, bit for bit."""
    _, checkpoint = model
    expected = SplitModel(load(checkpoint.plain, 1)).logits(PROMPT)
    assert torch.equal(SplitModel(load(checkpoint.path, 2)).logits(PROMPT), expected)


def test_in_few_bits_it_computes_with_nearly_those_numbers(
    model: tuple[str, Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scales are rounded to bfloat16, what has other groups to 8 bits; see `test_few_bits`.

    Forms of 8 bits on a CPU round the code of 0 by up to a thirtieth of a step, which counts where
    bytes hold codes of 4 bits.
    """
    name, checkpoint = model
    files = open_model(str(checkpoint.path))
    encoding = FEW_BITS[FORMATS[name].encoding]
    assert files.encoding == encoding
    twin = Twin(files, encoding, monkeypatch)
    rounds = FORMATS[name].code_bits == 8 and "int" not in name
    most = 0.008 if "in bytes" in name else 0.006 if rounds else 0.004
    assert max(twin.errors.values()) < most
    found = SplitModel(load(checkpoint.path, 3, encoding)).logits(PROMPT * 3)
    assert difference(found, twin.model.logits(PROMPT * 3)) < 3e-4


def test_split_equals_whole_token_by_token(model: tuple[str, Checkpoint]) -> None:
    name, checkpoint = model
    encoding = FEW_BITS[FORMATS[name].encoding]
    token_ids, logits = generate(load(checkpoint.path, 1, encoding))
    assert len(set(token_ids)) > 2, "a model that repeats itself shows nothing"
    for num_stages in (2, 3):
        again, others = generate(load(checkpoint.path, num_stages, encoding))
        assert again == token_ids
        assert torch.equal(others, logits)


def test_codes_of_groups_of_32_are_kept_as_they_are(model: tuple[str, Checkpoint]) -> None:
    name, checkpoint = model
    files = open_model(str(checkpoint.path))
    plain = open_model(str(checkpoint.plain))
    tensor = next(name for name in files.tensor_names if name.endswith("o_proj.weight"))
    with files.open_tensors([tensor]) as reader, plain.open_tensors([tensor]) as twin:
        info = reader.info(tensor)
        assert info.code_bits == FORMATS[name].code_bits
        assert info.shape == twin.info(tensor).shape
        expected = twin.read(tensor, 3, 50).astype(np.float32)
        assert np.array_equal(reader.read(tensor, 3, 50), expected)
        groups = reader.read_groups(tensor, 3, 50)
        assert groups.group_size == 32
        step = np.abs(expected).max() / 127
        exact = info.code_bits < 8 or "int" in name or name == "gptq, 8 bits"
        error = np.abs(groups.values() - expected).max()
        assert error <= (1e-6 if exact else 0.51 * step)


@pytest.mark.parametrize("asked", [INT4, INT8])
@pytest.mark.parametrize("name", ["awq", "gptq, 8 bits", "fp8"])
def test_weights_can_be_asked_for_in_other_bits(name: str, asked: Encoding, tmp_path: Path) -> None:
    checkpoint = packed_model(FORMATS[name], "llama", tmp_path)
    files = open_model(str(checkpoint.path))
    few = load_layer_stack(
        files,
        LayerRange(1, 3),
        precision=FLOAT32._replace(weights=asked),
        device=CPU,
        keeps_own=False,
    )
    plain = load_layer_stack(
        open_model(str(checkpoint.plain)), LayerRange(1, 3), precision=FLOAT32, device=CPU
    )
    most = {INT4: 0.18, INT8: 0.3}[asked]
    assert few.weight_bytes < most * plain.weight_bytes


SKIPPED: dict[str, Callable[[str], bool]] = {
    "a layer": lambda module: ".layers.0." in module,
    "a kind of module": lambda module: module.endswith("down_proj"),
    "one of three that are one": lambda module: module.endswith("v_proj"),
}


@pytest.mark.parametrize("skipped", SKIPPED)
@pytest.mark.parametrize(
    "name", ["awq", "gptq", "compressed-tensors, int4", "fp8", "bitsandbytes, nf4"]
)
def test_modules_that_were_left_plain_stay_plain(name: str, skipped: str, tmp_path: Path) -> None:
    checkpoint = packed_model(FORMATS[name], "llama", tmp_path, skips=SKIPPED[skipped])
    expected = SplitModel(load(checkpoint.plain, 1)).logits(PROMPT)
    assert torch.equal(SplitModel(load(checkpoint.path, 3)).logits(PROMPT), expected)
    encoding = FEW_BITS[FORMATS[name].encoding]
    whole = load_layer_stack(
        open_model(str(checkpoint.path)),
        LayerRange(0, NUM_LAYERS),
        precision=FLOAT32._replace(weights=encoding),
        device=CPU,
    )
    every = load_layer_stack(
        open_model(str(packed_model(FORMATS[name], "llama", tmp_path / "all").path)),
        LayerRange(0, NUM_LAYERS),
        precision=FLOAT32._replace(weights=encoding),
        device=CPU,
    )
    assert whole.weight_bytes > every.weight_bytes, "plain matrices take 16 bits"


@pytest.mark.parametrize("name", ["gptq", "fp8", "bitsandbytes, nf4"])
def test_tensors_of_a_matrix_may_lie_in_several_files(name: str, tmp_path: Path) -> None:
    whole = packed_model(FORMATS[name], "llama", tmp_path / "whole")
    parts = packed_model(FORMATS[name], "llama", tmp_path / "parts", max_shard_size="40KB")
    assert len(list(parts.path.glob("*.safetensors"))) > 3
    expected = SplitModel(load(whole.path, 1)).logits(PROMPT)
    assert torch.equal(SplitModel(load(parts.path, 3)).logits(PROMPT), expected)
    assert open_model(str(whole.path)).fingerprint == open_model(str(parts.path)).fingerprint


def more_bits(four: Format, eight: Format, **settings: object) -> Format:
    """The last matrix of each MLP in 8 bits, all others in 4."""

    def make(weight: np.ndarray) -> Packed:
        return (eight if weight.shape == (64, 128) else four).make(weight)

    return Format(make, {**four.settings, **settings}, "int4", 4)


MIXED = {
    "gptq": more_bits(
        FORMATS["gptq"],
        FORMATS["gptq, 8 bits"],
        dynamic={"+:.*down_proj": {"bits": 8, "group_size": -1}, "-:.*lm_head": {}},
    ),
    "compressed-tensors": more_bits(
        FORMATS["compressed-tensors, int4"],
        FORMATS["compressed-tensors, FP8"],
        format="mixed-precision",
        config_groups={
            "group_0": {
                **{"format": "pack-quantized", "targets": ["re:.*(proj)$"]},
                "weights": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32},
            },
            "group_1": {
                **{"format": "float-quantized", "targets": ["re:.*down_proj"]},
                "weights": {"num_bits": 8, "type": "float", "strategy": "channel"},
            },
        },
    ),
}


@pytest.mark.parametrize("name", MIXED)
def test_modules_may_have_other_bits(name: str, tmp_path: Path) -> None:
    checkpoint = packed_model(MIXED[name], "llama", tmp_path)
    expected = SplitModel(load(checkpoint.plain, 1)).logits(PROMPT)
    assert torch.equal(SplitModel(load(checkpoint.path, 3)).logits(PROMPT), expected)
    token_ids, logits = generate(load(checkpoint.path, 1, INT4))
    again, others = generate(load(checkpoint.path, 3, INT4))
    assert again == token_ids
    assert torch.equal(others, logits)


def test_bits_that_the_settings_do_not_name_are_refused(tmp_path: Path) -> None:
    format_ = more_bits(FORMATS["gptq"], FORMATS["gptq, 8 bits"])
    path = packed_model(format_, "llama", tmp_path).path
    with pytest.raises(ModelFilesError, match=r"down_proj do not .*codes of 8 bits, .* says 4"):
        load(path, 1)
