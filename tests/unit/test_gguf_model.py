"""Opening models from GGUF files: what they are, and how damage is reported."""

import re
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from stagecoach.contract.errors import ModelFilesError, UnsupportedModelError
from stagecoach.model_files import GgufTokenizer, open_model
from stagecoach.model_files.gguf_architectures import ARCHITECTURES
from tests.tiny_models import NUM_LAYERS, VOCAB_SIZE, read_all, tiny_gguf

WIDE: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 256}
"""Columns for whole blocks of 256."""

EXPERTS: dict[str, dict[str, Any]] = {
    "mixtral": {"sliding_window": None},
    "olmoe": {"clip_qkv": None},
    "qwen2_moe": {"use_sliding_window": False, "mlp_only_layers": None},
    "qwen3_moe": {"mlp_only_layers": None},
}
"""Cases whose layers have experts, as far as their metadata can say what they are."""


@pytest.mark.parametrize("case", ["llama", "llama-gqa-tied", "qwen2", "qwen3", *EXPERTS])
def test_shows_the_names_and_values_of_hugging_face(tmp_path: Path, case: str) -> None:
    path = tiny_gguf(case, tmp_path, **EXPERTS.get(case, {}))
    found, expected = read_all(path), read_all(tmp_path / case)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name], tensor, err_msg=name)


@pytest.mark.parametrize("case", ["llama", "qwen2", "qwen3", *EXPERTS])
def test_config_is_that_of_the_folder(tmp_path: Path, case: str) -> None:
    path = tiny_gguf(case, tmp_path, **EXPERTS.get(case, {}))
    found, expected = open_model(str(path)).config, open_model(str(tmp_path / case)).config
    for name in expected.__dataclass_fields__:
        if name not in ("raw", "checkpoint_dtype"):
            assert getattr(found, name) == getattr(expected, name), name
    assert found.checkpoint_dtype is None  # such a file says it of each tensor


@pytest.mark.parametrize("field", ["rope.scaling.factor", "rope.scale_linear"])
def test_a_rope_factor_without_a_kind_is_linear(tmp_path: Path, field: str) -> None:
    path = tiny_gguf("llama", tmp_path, metadata={f"llama.{field}": 4.0})
    scaling = open_model(str(path)).config.raw["rope_scaling"]
    assert scaling == {"rope_type": "linear", "factor": 4.0}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("attention.causal", False),
        ("attention.clamp_kqv", 8.0),
        ("attention.max_alibi_bias", 8.0),
        ("attention.scale", 0.5),
        ("attention.sliding_window_pattern", [True, False] * 3),
        ("attn_logit_softcapping", 50.0),
        ("embedding_scale", 12.0),
        ("expert_shared_count", 1),
        ("final_logit_softcapping", 30.0),
        ("logit_scale", 0.25),
        ("nextn_predict_layers", 1),
        ("residual_scale", 0.22),
        ("rope.dimension_sections", [16, 24, 24, 0]),
        ("rope.freq_base_swa", 20000.0),
        ("rope.scaling.alpha", 1000.0),
        ("rope.scaling.attn_factor", 1.2),
        ("rope.scaling.type", "longrope"),
        ("rope.scaling.yarn_log_multiplier", 0.1),
        ("something.of_tomorrow", "x"),
    ],
)
def test_metadata_that_would_change_the_arithmetic_is_refused_by_name(
    tmp_path: Path, field: str, value: object
) -> None:
    path = tiny_gguf("llama", tmp_path, metadata={f"llama.{field}": value})
    with pytest.raises(UnsupportedModelError) as caught:
        open_model(str(path))
    assert field.replace("rope.scaling.type", "rope scaling 'longrope'") in str(caught.value)


def test_metadata_that_changes_nothing_is_accepted(tmp_path: Path) -> None:
    metadata = {
        "attention.causal": True,
        "attention.clamp_kqv": 0.0,
        "attention.head_count_kv": [4] * NUM_LAYERS,
        "attention.scale": 12**-0.5,
        "expert_used_count": 0,
        "logit_scale": 1.0,
        "rope.scaling.attn_factor": 1.0,
        "rope.scaling.finetuned": False,
        "rope.scaling.type": "none",
        "tensor_data_layout": "Meta AI original pth",
    }
    path = tiny_gguf("llama", tmp_path, metadata={f"llama.{k}": v for k, v in metadata.items()})
    found, expected = open_model(str(path)).config, open_model(str(tmp_path / "llama")).config
    assert found.num_kv_heads == expected.num_kv_heads == 4
    assert found.raw["rope_scaling"] is None


def test_layers_that_differ_are_refused(tmp_path: Path) -> None:
    heads = {"llama.attention.head_count_kv": [4, 4, 4, 2, 2, 2]}
    path = tiny_gguf("llama", tmp_path, metadata=heads)
    with pytest.raises(UnsupportedModelError, match="head_count_kv that differs between"):
        open_model(str(path))


def test_factors_beside_another_scaling_are_refused(tmp_path: Path) -> None:
    path = tiny_gguf(
        "llama3-rope", tmp_path, rope_factors=True, metadata={"llama.rope.scaling.factor": 2.0}
    )
    with pytest.raises(UnsupportedModelError, match=r"rope_freqs\.weight beside rope scaling"):
        open_model(str(path))


def test_a_vocabulary_of_another_size_than_the_embedding_is_refused(tmp_path: Path) -> None:
    path = tiny_gguf("llama", tmp_path, metadata={"llama.vocab_size": 99})
    with pytest.raises(ModelFilesError, match=r"vocab_size is 99, token_embd\.weight has 128"):
        open_model(str(path))


@pytest.mark.parametrize("kind", ["adapter", "mmproj", "imatrix"])
def test_what_is_no_model_is_told_by_its_type(tmp_path: Path, kind: str) -> None:
    path = tiny_gguf("llama", tmp_path, metadata={"general.type": kind})
    with pytest.raises(UnsupportedModelError, match=f"no model but of type '{kind}'"):
        open_model(str(path))


def test_reads_a_range_of_rows_of_a_quantized_matrix(tmp_path: Path) -> None:
    path = tiny_gguf("llama", tmp_path, quantization=gguf.GGMLQuantizationType.Q8_0, hidden_size=64)
    files = open_model(str(path))
    with files.open_tensors(files.tensor_names) as reader:
        for name in ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj", "input_layernorm"):
            whole = reader.read(f"model.layers.3.{name}.weight")
            rows = reader.read(f"model.layers.3.{name}.weight", 5, 29)
            np.testing.assert_array_equal(rows, whole[5:29])


@pytest.mark.parametrize("scale", [np.nan, np.inf])
@pytest.mark.parametrize(("kind", "place"), [("Q8_0", 0), ("TQ2_0", 64)])
def test_a_scale_that_is_no_number_is_refused_with_the_tensors_name(
    tmp_path: Path, kind: str, place: int, scale: float
) -> None:
    """The second type is one whose numbers are rounded."""
    quantization = gguf.GGMLQuantizationType[kind]
    path = tiny_gguf("llama", tmp_path, quantization=quantization, **WIDE)
    tensor = next(t for t in gguf.GGUFReader(path).tensors if t.name == "blk.2.ffn_up.weight")
    content = bytearray(path.read_bytes())
    start = tensor.data_offset + place
    content[start : start + 2] = np.array([scale], np.float16).tobytes()
    path.write_bytes(content)
    files = open_model(str(path))
    name = "model.layers.2.mlp.up_proj.weight"
    with files.open_tensors([name]) as reader:
        with pytest.raises(ModelFilesError, match=r"'blk\.2\.ffn_up\.weight' is damaged: a scale"):
            reader.read_groups(name, 0, 8)
        assert np.isfinite(reader.read_groups(name, 8, 16).values()).all()


def test_tokenizer_metadata_is_plain_python(tmp_path: Path) -> None:
    tokenizer = open_model(str(tiny_gguf("llama", tmp_path))).tokenizer_files()
    assert isinstance(tokenizer, GgufTokenizer)
    tokens = tokenizer.metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, list)
    assert len(tokens) == VOCAB_SIZE
    assert tokens[3] == "token 3"
    assert tokenizer.metadata["tokenizer.ggml.eos_token_id"] == 2


def test_fingerprint_tells_models_apart(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    first = open_model(str(tiny_gguf("llama", tmp_path))).fingerprint
    same = open_model(str(tiny_gguf("llama", tmp_path))).fingerprint
    other = open_model(str(tiny_gguf("llama", tmp_path / "other", rms_norm_eps=0.5))).fingerprint
    assert first == same
    assert first != other


def test_truncations_are_refused(tmp_path: Path) -> None:
    path = tiny_gguf("llama", tmp_path)
    content = path.read_bytes()
    for length in [*range(0, 20_000, 37), len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(ModelFilesError, match=r"llama\.gguf"):
            open_model(str(path))


def test_truncation_names_file_and_sizes(tmp_path: Path) -> None:
    path = tiny_gguf("llama", tmp_path)
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[: size - 4096])
    with pytest.raises(ModelFilesError, match=f"truncated: it has {size - 4096} bytes"):
        open_model(str(path))


def test_a_huge_count_is_refused_without_memory_for_it(tmp_path: Path) -> None:
    path = tmp_path / "huge.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 2**60, 2**60))
    with pytest.raises(ModelFilesError, match="truncated"):
        open_model(str(path))


def test_another_file_is_no_gguf(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"PK\3\4" * 100)
    with pytest.raises(ModelFilesError, match="no GGUF file"):
        open_model(str(path))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelFilesError, match=r"absent\.gguf"):
        open_model(str(tmp_path / "absent.gguf"))


def write_metadata(path: Path, architecture: str, **fields: int) -> None:
    writer = gguf.GGUFWriter(path, architecture)
    for name, value in fields.items():
        writer.add_uint32(f"{architecture}.{name}", value)
    writer.add_tensor("token_embd.weight", np.zeros((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_another_architecture_is_refused_by_name(tmp_path: Path) -> None:
    write_metadata(tmp_path / "x.gguf", "mamba")
    with pytest.raises(UnsupportedModelError, match="'mamba'"):
        open_model(str(tmp_path / "x.gguf"))


def test_the_documents_list_every_architecture() -> None:
    text = (Path(__file__).parents[2] / "docs/models.md").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("GGUF files of these")]
    assert re.findall(r"`([\w.-]+)`", line) == [*ARCHITECTURES]


def test_a_mixture_of_experts_is_refused(tmp_path: Path) -> None:
    """Of an architecture that has no experts."""
    write_metadata(tmp_path / "x.gguf", "qwen2", expert_count=8)
    with pytest.raises(UnsupportedModelError, match="experts"):
        open_model(str(tmp_path / "x.gguf"))


def test_missing_metadata_is_named(tmp_path: Path) -> None:
    write_metadata(tmp_path / "x.gguf", "llama")
    with pytest.raises(ModelFilesError, match=r"llama\.embedding_length"):
        open_model(str(tmp_path / "x.gguf"))
