"""Served families whose layers have one MLP each, and that follow no model of their own.

An entry each, as in `families`.
"""

from collections.abc import Mapping
from types import MappingProxyType

from stagecoach.model_files.family import (
    Family,
    Keys,
    Rope,
    Sizes,
    TensorNames,
    WindowedLayers,
    Windows,
    keys_of,
)


def _llama3(factor: float, theta: float) -> Keys:
    return keys_of(
        rope_type="llama3",
        rope_theta=theta,
        factor=factor,
        original_max_position_embeddings=8192,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
    )


_GPT2_NAMES = TensorNames(
    "transformer.wte.", "transformer.h.", "transformer.ln_f.", "lm_head.", "transformer.wpe."
)
_GPT2_KEYS: Mapping[str, str] = MappingProxyType(
    {
        "n_embd": "hidden_size",
        "n_head": "num_attention_heads",
        "n_inner": "intermediate_size",
        "n_layer": "num_hidden_layers",
        "n_positions": "max_position_embeddings",
    }
)
_LLAMA_KEYS = keys_of(attention_bias=False, hidden_act="silu", mlp_bias=False, rms_norm_eps=1e-5)

DENSE_FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "apertus": Family(
            module="apertus",
            prefix="Apertus",
            sizes=Sizes(32, 4096, 131072, 32, None, None, 14336, 65536, False, 2),
            reads=keys_of(attention_bias=False, hidden_act="xielu", rms_norm_eps=1e-5),
            has_gate=False,
            rope=Rope(theta=1.2e7, unless_said=_llama3(8.0, 1.2e7)),
        ),
        "biogpt": Family(
            module="biogpt",
            prefix="BioGpt",
            sizes=Sizes(24, 1024, 42384, 16, None, None, 4096, 1024, True, 2),
            reads=keys_of(hidden_act="gelu", scale_embedding=True),
            names=TensorNames(
                "biogpt.embed_tokens.",
                "biogpt.layers.",
                "biogpt.layer_norm.",
                "output_projection.",
                "biogpt.embed_positions.",
            ),
            norm="LayerNorm",
            norm_eps=None,
            first_position=2,
            has_gate=False,
            embedding_scaled_by_width=True,
        ),
        "bitnet": Family(
            module="bitnet",
            prefix="BitNet",
            sizes=Sizes(30, 2560, 128256, 20, 5, None, 6912, 2048, False, 128001),
            reads=keys_of(attention_bias=False, hidden_act="relu2", rms_norm_eps=1e-5),
            rope=Rope(theta=5e5),
        ),
        "cwm": Family(
            module="cwm",
            prefix="Cwm",
            sizes=Sizes(64, 6144, 128256, 48, 8, 128, 21504, 131072, False, None),
            reads=keys_of(hidden_act="silu", mlp_bias=False, rms_norm_eps=1e-5),
            rope=Rope(theta=1e6, unless_said=_llama3(16.0, 1e6)),
            windows=Windows(WindowedLayers.FIXED_PATTERN_FROM_FULL, 8192, every=4),
            end_tokens=(128001, 128008, 128009),
        ),
        "ernie4_5": Family(
            module="ernie4_5",
            prefix="Ernie4_5",
            sizes=Sizes(18, 1024, 103424, 16, 2, 128, 3072, 131072, True, 2),
            reads=keys_of(hidden_act="silu", rms_norm_eps=1e-5, use_bias=False),
            rope=Rope(theta=5e5),
        ),
        "gpt2": Family(
            module="gpt2",
            prefix="GPT2",
            layer="Block",
            sizes=Sizes(12, 768, 50257, 12, None, None, None, 1024, True, 50256),
            reads=keys_of(
                activation_function="gelu_new",
                layer_norm_epsilon=1e-5,
                scale_attn_by_inverse_layer_idx=False,
                scale_attn_weights=True,
            ),
            names=_GPT2_NAMES,
            other_keys=_GPT2_KEYS,
            norm="LayerNorm",
            norm_eps="layer_norm_epsilon",
            first_position=0,
            has_gate=False,
            mlp_widening=4,
        ),
        "gpt_bigcode": Family(
            module="gpt_bigcode",
            prefix="GPTBigCode",
            layer="Block",
            sizes=Sizes(12, 768, 50257, 12, None, None, None, 1024, True, 50256),
            reads=keys_of(
                activation_function="gelu_pytorch_tanh",
                layer_norm_epsilon=1e-5,
                multi_query=True,
                scale_attn_weights=True,
            ),
            names=_GPT2_NAMES,
            other_keys=_GPT2_KEYS,
            norm="LayerNorm",
            norm_eps="layer_norm_epsilon",
            first_position=0,
            has_gate=False,
            mlp_widening=4,
            one_kv_head="multi_query",
        ),
        "gpt_neox": Family(
            module="gpt_neox",
            prefix="GPTNeoX",
            layer="Layer",
            sizes=Sizes(44, 6144, 50432, 64, None, None, 24576, 2048, False, 2),
            reads=keys_of(
                attention_bias=True,
                hidden_act="gelu",
                layer_norm_eps=1e-5,
                use_parallel_residual=True,
            ),
            names=TensorNames(
                "gpt_neox.embed_in.", "gpt_neox.layers.", "gpt_neox.final_layer_norm.", "embed_out."
            ),
            norm="LayerNorm",
            norm_eps="layer_norm_eps",
            has_gate=False,
            rope=Rope(
                theta_key="rotary_emb_base", rotated_part=0.25, rotated_part_key="rotary_pct"
            ),
        ),
        "hunyuan_v1_dense": Family(
            module="hunyuan_v1_dense",
            prefix="HunYuanDenseV1",
            sizes=Sizes(32, 4096, 290943, 32, None, None, 11008, 2048, False, 2),
            reads=keys_of(attention_bias=False, hidden_act="silu", rms_norm_eps=1e-5),
        ),
        "hyperclovax": Family(
            module="hyperclovax",
            prefix="HyperCLOVAX",
            sizes=Sizes(32, 4096, 32000, 32, None, None, 11008, 2048, False, 2),
            reads=keys_of(
                attention_bias=False,
                attention_multiplier=None,
                embedding_multiplier=1.0,
                hidden_act="silu",
                logits_scaling=1.0,
                mlp_bias=False,
                residual_multiplier=1.0,
                rms_norm_eps=1e-6,
                use_post_norm=True,
            ),
            embedding_multiplier="embedding_multiplier",
            residual_multiplier="residual_multiplier",
            logits_multiplier="logits_scaling",
        ),
        "internlm3": Family(
            module="llama",
            prefix="Llama",
            sizes=Sizes(48, 4096, 128512, 32, 2, 128, 10240, 32768, False, 2),
            reads=_LLAMA_KEYS,
            other_keys=MappingProxyType({"qkv_bias": "attention_bias", "bias": "mlp_bias"}),
        ),
        "iquestcoder": Family(
            module="llama",
            prefix="Llama",
            sizes=Sizes(80, 5120, 76800, 40, 8, 128, 27648, 131072, False, 2),
            reads=_LLAMA_KEYS,
        ),
        "jais2": Family(
            module="jais2",
            prefix="Jais2",
            sizes=Sizes(32, 3328, 150272, 26, None, None, 26624, 8192, False, 150024),
            reads=keys_of(
                attention_bias=True, hidden_act="relu2", layer_norm_eps=1e-5, mlp_bias=True
            ),
            norm="LayerNorm",
            norm_eps="layer_norm_eps",
            has_gate=False,
        ),
        "ministral3": Family(
            module="ministral3",
            prefix="Ministral3",
            sizes=Sizes(34, 4096, 131072, 32, 8, 128, 14336, 262144, False, 2),
            reads=keys_of(hidden_act="silu", rms_norm_eps=1e-5),
            rope=Rope(
                unless_said=keys_of(
                    rope_type="yarn",
                    rope_theta=1e6,
                    factor=16.0,
                    original_max_position_embeddings=16384,
                    beta_fast=32.0,
                    beta_slow=1.0,
                    mscale_all_dim=1.0,
                    mscale=1.0,
                    llama_4_scaling_beta=0.1,
                )
            ),
            windows=Windows(WindowedLayers.ALL, None),
        ),
        "nanochat": Family(
            module="nanochat",
            prefix="NanoChat",
            sizes=Sizes(12, 768, 50304, 6, None, None, 8192, 2048, False, 1),
            reads=keys_of(
                attention_bias=False,
                final_logit_softcapping=15.0,
                hidden_act="relu2",
                rms_norm_eps=1e-6,
            ),
            norm_has_width=False,
            norms_embeddings=True,
            has_gate=False,
            logits_softcap="final_logit_softcapping",
        ),
        "nemotron": Family(
            module="nemotron",
            prefix="Nemotron",
            sizes=Sizes(32, 6144, 256000, 48, None, None, 24576, 4096, False, 3),
            reads=keys_of(attention_bias=False, hidden_act="relu2", mlp_bias=False, norm_eps=1e-5),
            hands_arguments_on=False,
            norm="LayerNorm1P",
            norm_eps="norm_eps",
            has_gate=False,
            rope=Rope(rotated_part=0.5),
        ),
        "persimmon": Family(
            module="persimmon",
            prefix="Persimmon",
            sizes=Sizes(36, 4096, 262144, 64, None, None, 16384, 16384, False, 2),
            reads=keys_of(hidden_act="relu2", layer_norm_eps=1e-5, qk_layernorm=True),
            names=TensorNames(norm="model.final_layernorm."),
            norm="LayerNorm",
            norm_eps="layer_norm_eps",
            has_gate=False,
            rope=Rope(rotated_part=0.5),
        ),
        "phi": Family(
            module="phi",
            prefix="Phi",
            sizes=Sizes(24, 2048, 51200, 32, None, None, 8192, 2048, False, 2),
            reads=keys_of(hidden_act="gelu_new", layer_norm_eps=1e-5, qk_layernorm=False),
            names=TensorNames(norm="model.final_layernorm."),
            head_has_bias=True,
            norm="LayerNorm",
            norm_eps="layer_norm_eps",
            has_gate=False,
            rope=Rope(rotated_part=0.5),
        ),
        "stablelm": Family(
            module="stablelm",
            prefix="StableLm",
            sizes=Sizes(32, 2560, 50304, 32, 32, None, 6912, 4096, False, 0),
            reads=keys_of(
                hidden_act="silu",
                layer_norm_eps=1e-5,
                qk_layernorm=False,
                use_parallel_residual=False,
                use_qkv_bias=False,
            ),
            hands_arguments_on=False,
            norm="LayerNorm",
            norm_eps="layer_norm_eps",
            rope=Rope(rotated_part=0.25),
        ),
        "vaultgemma": Family(
            module="vaultgemma",
            prefix="VaultGemma",
            sizes=Sizes(26, 2304, 256000, 8, 4, 256, 9216, 8192, True, 1),
            reads=keys_of(
                attention_bias=False,
                attn_logit_softcapping=50.0,
                final_logit_softcapping=30.0,
                hidden_activation="gelu_pytorch_tanh",
                query_pre_attn_scalar=256,
                rms_norm_eps=1e-6,
            ),
            embedding_scaled_by_width=True,
            logits_softcap="final_logit_softcapping",
            windows=Windows(WindowedLayers.FIXED_PATTERN, 4096, every=2),
        ),
    }
)
"""Every one by its `model_type`."""
