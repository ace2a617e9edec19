"""What a configuration says by the keys that it has, and by those that it leaves out."""

import re
from importlib import import_module
from pathlib import Path

import pytest
from transformers import CONFIG_MAPPING

from stage_server.model.experts import are_experts
from stage_server.model.module_blueprint import ModuleBlueprint
from stagecoach.contract.errors import ModelFilesError
from stagecoach.contract.layer_range import LayerRange
from stagecoach.model_files import open_model
from stagecoach.model_files.canonical_config import canonical_config
from stagecoach.model_files.config import parse_config
from stagecoach.model_files.families import FAMILIES
from stagecoach.model_files.family import Sizes
from stagecoach.model_files.model_files import fingerprint_of
from stagecoach.model_files.weight_digest import HEAD
from tests.tiny_models import FAMILIES as TINY
from tests.tiny_models import needed_keys, tiny_model


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


@pytest.mark.parametrize("model_type", FAMILIES)
def test_absent_factors_are_those_that_transformers_takes(model_type: str) -> None:
    family, written = FAMILIES[model_type], CONFIG_MAPPING[model_type]().to_dict()
    for computed in (family.residual_scale, family.logits_scale, family.softcap):
        assert computed({}) == computed(written)
    width = {"hidden_size": 48}
    assert family.embedding_scale(width) == family.embedding_scale({**written, **width})


def test_a_cap_that_is_null_caps_nothing() -> None:
    assert FAMILIES["gemma2"].softcap({"final_logit_softcapping": None}) is None


@pytest.mark.parametrize("model_type", FAMILIES)
def test_absent_keys_mean_what_they_mean_to_transformers(model_type: str) -> None:
    fields = CONFIG_MAPPING[model_type].__dataclass_fields__
    own_keys = {usual: own for own, usual in FAMILIES[model_type].other_keys.items()}
    named = [key if key in fields else own_keys.get(key, key) for key in Sizes._fields]
    theirs = [getattr(fields.get(key), "default", None) for key in named]
    assert list(FAMILIES[model_type].sizes) == theirs


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_configuration_that_names_its_family_alone_is_whole(model_type: str) -> None:
    needed = needed_keys(model_type)
    ours = parse_config({"model_type": model_type, **needed})
    theirs = CONFIG_MAPPING[model_type](**needed)
    assert ours.num_layers == theirs.num_hidden_layers
    # One that leaves it open has as many, or is refused by the stage, as by transformers.
    if ours.latent is not None:
        assert (ours.num_kv_heads, ours.head_dim) == (1, ours.latent.row)
        return
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


EXPERTS: dict[str, tuple[dict[str, object], tuple[int, int, int, int], int]] = {
    "granite-3.0-1b-a400m": (
        {"model_type": "granitemoe", "num_hidden_layers": 24, "intermediate_size": 512}
        | {"num_local_experts": 32, "num_experts_per_tok": 8},
        (32, 8, 512, 0),
        0,
    ),
    "Qwen1.5-MoE-A2.7B": (
        {"model_type": "qwen2_moe", "num_hidden_layers": 24, "decoder_sparse_step": 1}
        | {"moe_intermediate_size": 1408, "shared_expert_intermediate_size": 5632}
        | {"num_experts": 60, "num_experts_per_tok": 4},
        (60, 4, 1408, 5632),
        0,
    ),
    "GLM-4.5-Air": (
        {"model_type": "glm4_moe", "num_hidden_layers": 46, "first_k_dense_replace": 1}
        | {"moe_intermediate_size": 1408, "n_routed_experts": 128, "n_shared_experts": 1}
        | {"num_experts_per_tok": 8},
        (128, 8, 1408, 1408),
        1,
    ),
    "ERNIE-4.5-21B-A3B": (
        {"model_type": "ernie4_5_moe", "num_hidden_layers": 28, "moe_k": 6}
        | {"moe_num_experts": 64, "moe_num_shared_experts": 2, "moe_intermediate_size": 1536}
        | {"moe_layer_start_index": 1, "moe_layer_end_index": 27, "moe_layer_interval": 1},
        (64, 6, 1536, 3072),
        1,
    ),
    "Hunyuan-A13B": (
        {"model_type": "hunyuan_v1_moe", "num_hidden_layers": 32, "intermediate_size": 3072}
        | {"num_experts": 64, "moe_topk": [8] * 32},
        (64, 8, 3072, 3072),
        0,
    ),
}
"""What published models say of experts; sizes, and how many layers have none."""


@pytest.mark.parametrize("name", EXPERTS)
def test_experts_of_published_models_have_their_sizes(name: str) -> None:
    raw, sizes, num_dense = EXPERTS[name]
    experts = parse_config(raw).experts
    assert experts is not None
    assert experts[:4] == sizes
    assert experts.layers.count(False) == num_dense
    assert all(experts.layers[num_dense:])


@pytest.mark.parametrize("case", TINY)
def test_layers_have_experts_where_transformers_has_them(case: str, tmp_path: Path) -> None:
    files = open_model(str(tiny_model(case, tmp_path)))
    blueprint = ModuleBlueprint(files, LayerRange(0, files.config.num_layers))
    experts = files.config.experts
    for layer_idx, layer in enumerate(blueprint.layers):
        found = [module for module in layer.modules() if are_experts(module)]
        assert len(found) == (experts is not None and experts.layers[layer_idx])
        for module in found:
            assert experts is not None
            shape = dict(module.named_parameters())["down_proj"].shape
            layout = FAMILIES[files.config.model_type].experts
            width = shape[1 if layout and layout.are_transposed else 2]
            assert (shape[0], width) == (experts.num_experts, experts.width)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"num_experts": 0}, "num_experts is 0, must be a whole number from 1"),
        ({"num_experts": 4, "num_experts_per_tok": 5}, "is 5, must be at most the 4 of num_exp"),
        ({"num_experts": None}, "num_experts is null, must be"),
        ({"moe_intermediate_size": 1.5}, "moe_intermediate_size is 1.5, must be"),
        ({"decoder_sparse_step": 0}, "decoder_sparse_step is 0, must be"),
    ],
)
def test_numbers_of_experts_are_refused_by_name(said: dict[str, object], told: str) -> None:
    with pytest.raises(ModelFilesError, match=re.escape(told)):
        parse_config({"model_type": "qwen3_moe", **said})


def test_experts_are_known_by_their_other_names() -> None:
    """As transformers saves a Qwen3."""
    raw = {"model_type": "qwen3_moe", "num_experts": 16, "num_experts_per_tok": 2}
    saved = CONFIG_MAPPING["qwen3_moe"].from_dict(raw).to_dict()
    assert "num_experts" not in saved
    assert parse_config(saved).experts == parse_config(raw).experts
    assert canonical_config(parse_config(saved)) == canonical_config(parse_config(raw))


def test_experts_that_differ_from_layer_to_layer_are_refused() -> None:
    with pytest.raises(ModelFilesError, match=r"moe_topk is .*, must be the same for all layers"):
        parse_config({"model_type": "hunyuan_v1_moe", "num_experts": 8, "moe_topk": [2, 1]})
