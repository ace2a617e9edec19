"""What a configuration says by the keys that it has, and by those that it leaves out."""

from importlib import import_module

import pytest
from transformers import CONFIG_MAPPING

from stagecoach.contract.errors import ModelFilesError
from stagecoach.model_files.config import parse_config
from stagecoach.model_files.families import FAMILIES
from stagecoach.model_files.family import Sizes
from stagecoach.model_files.model_files import fingerprint_of
from stagecoach.model_files.weight_digest import HEAD


@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_family_is_one_of_transformers(model_type: str) -> None:
    family = FAMILIES[model_type]
    module = import_module(f"transformers.models.{family.module}.modeling_{family.module}")
    assert hasattr(module, f"{family.prefix}{family.layer}")
    is_rotary = hasattr(module, f"{family.prefix}RotaryEmbedding")
    assert is_rotary == (family.first_position is None)
    named = hasattr(module, f"{family.prefix}{family.norm}")
    assert named or family.norm == "LayerNorm"


@pytest.mark.parametrize("model_type", FAMILIES)
def test_keys_that_a_family_reads_are_known_to_transformers(model_type: str) -> None:
    family, theirs = FAMILIES[model_type], CONFIG_MAPPING[model_type]()
    for key, absent in family.reads.items():
        field = type(theirs).__dataclass_fields__.get(key)
        assert absent == (getattr(theirs, key) if field is None else field.default), key
    special = (
        *(family.norm_eps, family.embedding_multiplier, family.residual_multiplier),
        *(family.logits_multiplier, family.logits_divisor, family.logits_softcap),
    )
    assert {key for key in special if key is not None} <= family.reads.keys()


def test_families_have_names_of_their_own_in_gguf_files() -> None:
    architectures = [family.gguf.architecture for family in FAMILIES.values() if family.gguf]
    assert architectures == ["llama", "qwen2", "qwen3"]


@pytest.mark.parametrize("model_type", FAMILIES)
def test_absent_keys_mean_what_they_mean_to_transformers(model_type: str) -> None:
    fields = CONFIG_MAPPING[model_type].__dataclass_fields__
    own_keys = {usual: own for own, usual in FAMILIES[model_type].other_keys.items()}
    named = [key if key in fields else own_keys.get(key, key) for key in Sizes._fields]
    theirs = [getattr(fields.get(key), "default", None) for key in named]
    assert list(FAMILIES[model_type].sizes) == theirs


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_configuration_that_names_its_family_alone_is_whole(model_type: str) -> None:
    ours, theirs = parse_config({"model_type": model_type}), CONFIG_MAPPING[model_type]()
    assert ours.num_layers == theirs.num_hidden_layers
    # One that leaves it open has as many, or is refused by the stage, as by transformers.
    assert getattr(theirs, "num_key_value_heads", None) in (None, ours.num_kv_heads)
    assert ours.tie_word_embeddings == theirs.tie_word_embeddings


def test_keys_have_the_names_of_most_families_under_any_name() -> None:
    named = parse_config({"model_type": "internlm3", "qkv_bias": True, "bias": True})
    usual = parse_config({"model_type": "internlm3", "attention_bias": True, "mlp_bias": True})
    assert named.raw == usual.raw
    assert parse_config({**named.raw, "bias": True}).raw == named.raw
    with pytest.raises(ModelFilesError, match="bias is false, and mlp_bias, which is another name"):
        parse_config({**named.raw, "bias": False})


def test_a_cwm_without_end_tokens_has_those_of_its_family() -> None:
    theirs = CONFIG_MAPPING["cwm"]()
    assert list(parse_config({"model_type": "cwm"}).eos_token_ids) == theirs.eos_token_id
    assert parse_config({"model_type": "cwm", "eos_token_id": 5}).eos_token_ids == (5,)
    assert parse_config({"model_type": "cwm"}, {"eos_token_id": [7]}).eos_token_ids == (7,)


def test_names_of_tensors_are_found_both_ways() -> None:
    usual = ["model.embed_tokens.weight", "model.layers.3.mlp.x", "model.norm.bias", HEAD]
    for family in FAMILIES.values():
        stored = [family.names.in_files(name) for name in usual]
        assert [family.names.usual(name) for name in stored] == usual
    assert FAMILIES["gpt_neox"].names.in_files(usual[1]) == "gpt_neox.layers.3.mlp.x"


def test_what_is_handed_out_cannot_be_changed() -> None:
    raw = {"model_type": "llama", "rope_scaling": {"type": "linear", "factors": [1.0]}}
    config = parse_config(raw)
    before = fingerprint_of(config.raw)
    raw["rope_scaling"]["type"] = "dynamic"  # type: ignore[index]
    assert fingerprint_of(config.raw) == before
    with pytest.raises(TypeError):
        config.raw["rope_scaling"]["rope_type"] = "linear"  # type: ignore[index]
    with pytest.raises(TypeError):
        config.raw["model_type"] = "mistral"  # type: ignore[index]
    assert isinstance(config.raw["rope_scaling"]["factors"], tuple)  # type: ignore[index]


def test_yarn_reaches_as_far_as_it_says() -> None:
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    raw = {"model_type": "qwen2", "max_position_embeddings": 32768, "rope_scaling": yarn}
    assert parse_config(raw).max_model_len == 131072
    assert parse_config({**raw, "max_position_embeddings": 131072}).max_model_len == 131072
    unsaid = {**raw, "rope_scaling": {"type": "yarn", "factor": 4.0}}
    assert parse_config(unsaid).max_model_len == 131072
    by_layer = {"full_attention": {**yarn, "rope_type": "yarn"}, "sliding_attention": {}}
    raw = {"model_type": "olmo3", "max_position_embeddings": 32768, "rope_parameters": by_layer}
    assert parse_config(raw).max_model_len == 131072


@pytest.mark.parametrize(
    "key", ["moe_num_experts", "n_routed_experts", "num_experts", "num_local_experts"]
)
def test_experts_are_seen_under_each_of_their_names(key: str) -> None:
    assert not parse_config({"model_type": "llama"}).has_experts
    assert parse_config({"model_type": "llama", key: 8}).has_experts
