"""The architectures of GGUF files that are served, an entry each, by `general.architecture`.

Each is proven by a file that llama.cpp's own converter wrote; see `tests/recorded_gguf`. Where
llama.cpp takes something for granted that `config.json` says, such as which layers have a window,
the entry or the family's default says the same.
"""

from collections.abc import Mapping
from types import MappingProxyType

from stagecoach.model_files.expert_families import EXPERT_FAMILIES
from stagecoach.model_files.family import ExpertLayout
from stagecoach.model_files.gguf_architecture import GgufArchitecture


def _map(*others: Mapping[str, str], **values: str) -> Mapping[str, str]:
    merged: dict[str, str] = {}
    for other in others:
        merged |= other
    return MappingProxyType(merged | values)


def _layout(model_type: str) -> ExpertLayout:
    """How checkpoints of transformers name the experts of a family that has them."""
    layout = EXPERT_FAMILIES[model_type].experts
    assert layout is not None, "the family has experts"
    return layout


_ATTENTION = _map(
    attn_q="self_attn.q_proj",
    attn_k="self_attn.k_proj",
    attn_v="self_attn.v_proj",
    attn_output="self_attn.o_proj",
    attn_q_norm="self_attn.q_norm",
    attn_k_norm="self_attn.k_norm",
)
_MLP = _map(ffn_gate="mlp.gate_proj", ffn_up="mlp.up_proj", ffn_down="mlp.down_proj")
_LAYER = _map(_ATTENTION, _MLP, attn_norm="input_layernorm", ffn_norm="post_attention_layernorm")
"""Names of a layer's modules as most families have them."""

_POST_NORMS = _map(
    post_attention_norm="post_attention_layernorm", post_ffw_norm="post_feedforward_layernorm"
)
_GEMMA = _map(_LAYER, _POST_NORMS, ffn_norm="pre_feedforward_layernorm")
_ROUTED = _map(
    ffn_gate_inp="mlp.gate",
    ffn_gate_exps="mlp.experts.{}.gate_proj",
    ffn_up_exps="mlp.experts.{}.up_proj",
    ffn_down_exps="mlp.experts.{}.down_proj",
)
_SHARED = _map(
    ffn_gate_shexp="mlp.shared_experts.gate_proj",
    ffn_up_shexp="mlp.shared_experts.up_proj",
    ffn_down_shexp="mlp.shared_experts.down_proj",
)
_QWEN_EXPERTS = _map(
    _LAYER,
    _ROUTED,
    ffn_gate_inp_shexp="mlp.shared_expert_gate",
    ffn_gate_shexp="mlp.shared_expert.gate_proj",
    ffn_up_shexp="mlp.shared_expert.up_proj",
    ffn_down_shexp="mlp.shared_expert.down_proj",
)
_ROUTER_BIAS = _map(**{"exp_probs_b.bias": "mlp.gate.e_score_correction_bias"})
_MIXTRAL_EXPERTS = _map(
    _LAYER,
    ffn_gate_inp="block_sparse_moe.gate",
    ffn_gate_exps="block_sparse_moe.experts.{}.w1",
    ffn_up_exps="block_sparse_moe.experts.{}.w3",
    ffn_down_exps="block_sparse_moe.experts.{}.w2",
)
_GRANITE_KEYS = _map(
    **{
        "attention.scale": "attention_multiplier",
        "embedding_scale": "embedding_multiplier",
        "logit_scale": "logits_scaling",
        "residual_scale": "residual_multiplier",
    }
)
_SOFTCAPS = _map(
    attn_logit_softcapping="attn_logit_softcapping",
    final_logit_softcapping="final_logit_softcapping",
)
_LLAMA_BIASES = _map(attention_bias="attn_output.bias", mlp_bias="ffn_down.bias")
_ATTENTION_BIAS = _map(attention_bias="attn_output.bias")
_DEEPSEEK_KEYS = _map(
    expert_group_count="n_group",
    expert_group_used_count="topk_group",
    expert_weights_norm="norm_topk_prob",
    expert_weights_scale="routed_scaling_factor",
    leading_dense_block_count="first_k_dense_replace",
)
_NOT_NORMED = MappingProxyType({"norm_topk_prob": False})

ARCHITECTURES: Mapping[str, GgufArchitecture] = MappingProxyType(
    {
        "afmoe": GgufArchitecture(
            "afmoe",
            _map(
                _LAYER,
                _ROUTED,
                _SHARED,
                attn_gate="self_attn.gate_proj",
                post_attention_norm="post_attention_layernorm",
                ffn_norm="pre_mlp_layernorm",
                post_ffw_norm="post_mlp_layernorm",
                ffn_gate_inp="mlp.router.gate",
                **{"exp_probs_b.bias": "mlp.expert_bias"},
            ),
            says=MappingProxyType({"mup_enabled": True}),
            keys=_map(
                expert_shared_count="num_shared_experts",
                expert_weights_scale="route_scale",
                leading_dense_block_count="num_dense_layers",
            ),
            gating=2,
        ),
        "arcee": GgufArchitecture(
            "arcee", _LAYER, tensors_say=_LLAMA_BIASES, interleaves_heads=True
        ),
        "cohere2": GgufArchitecture(
            "cohere2", _LAYER, keys=_map(logit_scale="logit_scale"), tensors_say=_ATTENTION_BIAS
        ),
        "command-r": GgufArchitecture(
            "cohere",
            _LAYER,
            keys=_map(logit_scale="logit_scale"),
            tensors_say=_map(_ATTENTION_BIAS, use_qk_norm="attn_q_norm.weight"),
        ),
        "dots1": GgufArchitecture(
            "dots1",
            _map(_LAYER, _ROUTED, _SHARED, _ROUTER_BIAS),
            says=_NOT_NORMED,
            keys=_map(_DEEPSEEK_KEYS, expert_shared_count="n_shared_experts"),
            gating=2,
        ),
        "ernie4_5": GgufArchitecture("ernie4_5", _LAYER, tensors_say=_map(use_bias="attn_q.bias")),
        "ernie4_5-moe": GgufArchitecture(
            "ernie4_5_moe",
            _map(
                _LAYER,
                _ROUTED,
                _SHARED,
                **{"exp_probs_b.bias": "mlp.moe_statics.e_score_correction_bias"},
            ),
            keys=_map(
                expert_shared_count="moe_num_shared_experts",
                interleave_moe_layer_step="moe_layer_interval",
                leading_dense_block_count="moe_layer_start_index",
            ),
            tensors_say=_map(use_bias="attn_q.bias"),
        ),
        "exaone-moe": GgufArchitecture(
            "exaone_moe",
            _map(
                _LAYER,
                _ROUTED,
                _SHARED,
                **{"exp_probs_b.bias": "mlp.e_score_correction_bias"},
            ),
            says=_NOT_NORMED,
            keys=_map(_DEEPSEEK_KEYS, expert_shared_count="num_shared_experts"),
            gating=2,
            may_guess_ahead=True,
        ),
        "exaone4": GgufArchitecture("exaone4", _map(_ATTENTION, _MLP, _POST_NORMS)),
        "gemma": GgufArchitecture("gemma", _LAYER, shifts_norms=True),
        "gemma2": GgufArchitecture(
            "gemma2",
            _GEMMA,
            says=MappingProxyType({"sliding_window": 4096}),
            keys=_SOFTCAPS,
            shifts_norms=True,
        ),
        "gemma3": GgufArchitecture(
            "gemma3_text",
            _GEMMA,
            keys=_map(
                final_logit_softcapping="final_logit_softcapping",
                **{"rope.freq_base_swa": "rope_local_base_freq"},
            ),
            shifts_norms=True,
        ),
        "glm4": GgufArchitecture(
            "glm4",
            _map(
                _LAYER,
                post_attention_norm="post_self_attn_layernorm",
                ffn_up="mlp.gate_up_proj",
                post_ffw_norm="post_mlp_layernorm",
            ),
            tensors_say=_map(attention_bias="attn_q.bias"),
            rotates_part=True,
        ),
        "glm4moe": GgufArchitecture(
            "glm4_moe",
            _map(
                _ATTENTION,
                _MLP,
                _ROUTED,
                _SHARED,
                _ROUTER_BIAS,
                attn_norm="input_layernorm",
                post_attention_norm="post_attention_layernorm",
            ),
            says=_NOT_NORMED,
            keys=_map(_DEEPSEEK_KEYS, expert_shared_count="n_shared_experts"),
            tensors_say=_map(attention_bias="attn_q.bias", use_qk_norm="attn_q_norm.weight"),
            gating=2,
            may_guess_ahead=True,
            rotates_part=True,
        ),
        "gptneox": GgufArchitecture(
            "gpt_neox",
            _map(
                attn_norm="input_layernorm",
                attn_qkv="attention.query_key_value",
                attn_output="attention.dense",
                ffn_norm="post_attention_layernorm",
                ffn_up="mlp.dense_h_to_4h",
                ffn_down="mlp.dense_4h_to_h",
            ),
            keys=_map(use_parallel_residual="use_parallel_residual"),
            tensors_say=_map(attention_bias="attn_qkv.bias"),
            joins_heads=True,
            rotates_part=True,
        ),
        "gpt-oss": GgufArchitecture(
            "gpt_oss",
            _map(
                _LAYER,
                _ROUTED,
                post_attention_norm="post_attention_layernorm",
                ffn_gate_inp="mlp.router",
                **{
                    "attn_sinks.weight": "self_attn.sinks",
                    "ffn_gate_exps.bias": "mlp.experts.gate_proj_bias",
                    "ffn_up_exps.bias": "mlp.experts.up_proj_bias",
                    "ffn_down_exps.bias": "mlp.experts.down_proj_bias",
                },
            ),
            tensors_say=_map(attention_bias="attn_q.bias"),
            yarn_says=MappingProxyType({"truncate": False}),
            experts=ExpertLayout(
                gate_up_bias=("mlp.experts.gate_proj_bias", "mlp.experts.up_proj_bias"),
                down_bias=("mlp.experts.down_proj_bias",),
                keys=_layout("gpt_oss").keys,
            ),
        ),
        "granite": GgufArchitecture(
            "granite",
            _LAYER,
            keys=_GRANITE_KEYS,
            tensors_say=_LLAMA_BIASES,
            interleaves_heads=True,
        ),
        "granitemoe": GgufArchitecture(
            "granitemoe",
            _map(
                _LAYER,
                ffn_gate_inp="block_sparse_moe.router.layer",
                ffn_gate_exps="block_sparse_moe.experts.{}.gate_proj",
                ffn_up_exps="block_sparse_moe.experts.{}.up_proj",
                ffn_down_exps="block_sparse_moe.experts.{}.down_proj",
            ),
            keys=_GRANITE_KEYS,
            tensors_say=_ATTENTION_BIAS,
            experts=_layout("granitemoe")._replace(
                gate_up=(
                    "block_sparse_moe.experts.{}.gate_proj.weight",
                    "block_sparse_moe.experts.{}.up_proj.weight",
                ),
                down="block_sparse_moe.experts.{}.down_proj.weight",
            ),
            interleaves_heads=True,
        ),
        "hunyuan-dense": GgufArchitecture(
            "hunyuan_v1_dense",
            _map(
                _LAYER,
                attn_q_norm="self_attn.query_layernorm",
                attn_k_norm="self_attn.key_layernorm",
            ),
            tensors_say=_ATTENTION_BIAS,
        ),
        "jais2": GgufArchitecture("jais2", _LAYER, tensors_say=_LLAMA_BIASES),
        "llama": GgufArchitecture(
            "llama",
            _MIXTRAL_EXPERTS,
            windowed_model_type="mistral",
            expert_model_type="mixtral",
            tensors_say=_LLAMA_BIASES,
            interleaves_heads=True,
            may_have_rope_factors=True,
        ),
        "minimax-m2": GgufArchitecture(
            "minimax_m2",
            _map(
                _MIXTRAL_EXPERTS,
                **{"exp_probs_b.bias": "block_sparse_moe.e_score_correction_bias"},
            ),
            gating=2,
            rotates_part=True,
        ),
        "nemotron": GgufArchitecture(
            "nemotron",
            _LAYER,
            tensors_say=_LLAMA_BIASES,
            shifts_norms=True,
            rotates_part=True,
        ),
        "olmo": GgufArchitecture(
            "olmo",
            _LAYER,
            keys=_map(**{"attention.clamp_kqv": "clip_qkv"}),
            tensors_say=_ATTENTION_BIAS,
            interleaves_heads=True,
        ),
        "olmo2": GgufArchitecture(
            "olmo2",
            _map(_ATTENTION, _MLP, _POST_NORMS),
            windowed_model_type="olmo3",
            tensors_say=_ATTENTION_BIAS,
        ),
        "olmoe": GgufArchitecture(
            "olmoe",
            _QWEN_EXPERTS,
            keys=_map(**{"attention.clamp_kqv": "clip_qkv"}),
            tensors_say=_ATTENTION_BIAS,
        ),
        "phi2": GgufArchitecture(
            "phi",
            _map(
                _ATTENTION,
                attn_norm="input_layernorm",
                attn_output="self_attn.dense",
                ffn_up="mlp.fc1",
                ffn_down="mlp.fc2",
            ),
            rotates_part=True,
        ),
        "phi3": GgufArchitecture(
            "phi3",
            _map(_LAYER, attn_qkv="self_attn.qkv_proj", ffn_up="mlp.gate_up_proj"),
            rotates_part=True,
            may_have_rope_factors=True,
        ),
        "qwen2": GgufArchitecture("qwen2", _LAYER),
        "qwen2moe": GgufArchitecture("qwen2_moe", _QWEN_EXPERTS),
        "qwen3": GgufArchitecture("qwen3", _LAYER, tensors_say=_ATTENTION_BIAS),
        "qwen3moe": GgufArchitecture(
            "qwen3_moe",
            _QWEN_EXPERTS,
            says=MappingProxyType({"norm_topk_prob": True}),
            tensors_say=_ATTENTION_BIAS,
        ),
        "seed_oss": GgufArchitecture(
            "seed_oss",
            _map(_LAYER, post_attention_norm="post_attention_layernorm"),
            tensors_say=_map(
                attention_bias="attn_q.bias",
                attention_out_bias="attn_output.bias",
                mlp_bias="ffn_down.bias",
            ),
        ),
        "smollm3": GgufArchitecture(
            "smollm3", _LAYER, tensors_say=_LLAMA_BIASES, interleaves_heads=True
        ),
        "stablelm": GgufArchitecture(
            "stablelm",
            _LAYER,
            keys=_map(use_parallel_residual="use_parallel_residual"),
            tensors_say=_map(use_qkv_bias="attn_q.bias"),
            rotates_part=True,
        ),
        "starcoder": GgufArchitecture(
            "gpt_bigcode",
            _map(
                attn_norm="ln_1",
                attn_qkv="attn.c_attn",
                attn_output="attn.c_proj",
                ffn_norm="ln_2",
                ffn_up="mlp.c_fc",
                ffn_down="mlp.c_proj",
            ),
        ),
        "starcoder2": GgufArchitecture(
            "starcoder2",
            _map(_LAYER, ffn_up="mlp.c_fc", ffn_down="mlp.c_proj"),
            # Every published model has it, and no file says it.
            says=MappingProxyType({"sliding_window": 4096}),
            tensors_say=_map(use_bias="attn_output.bias"),
        ),
    }
)
"""Every one by its name in `general.architecture`."""
