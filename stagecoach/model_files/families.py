"""The model families that are served, one entry each, each with a parity test of the same name.

A family is here when its decoder layers, called one after another, are all there is between the
embedding and the final norm. Whatever is not here is refused by name: an unknown detail would
generate wrong text silently.
"""

from collections.abc import Mapping
from types import MappingProxyType

from stagecoach.model_files.dense_families import DENSE_FAMILIES
from stagecoach.model_files.expert_families import EXPERT_FAMILIES
from stagecoach.model_files.family import (
    Family,
    LeanLayout,
    Rope,
    Sizes,
    WindowedLayers,
    Windows,
    keys_of,
)

_GELU = "gelu_pytorch_tanh"
_YARN_IS_LONGROPE = MappingProxyType({"yarn": "longrope"})
"""The first Phi-3 models called their longrope embedding `yarn`."""


FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "arcee": Family(
            module="arcee",
            prefix="Arcee",
            sizes=Sizes(32, 2560, 32000, 32, None, None, 18432, 4096, False, 128001),
            reads=keys_of(
                attention_bias=False, hidden_act="relu2", mlp_bias=False, rms_norm_eps=1e-5
            ),
            has_gate=False,
        ),
        "cohere": Family(
            module="cohere",
            prefix="Cohere",
            sizes=Sizes(40, 8192, 256000, 64, None, None, 22528, 8192, True, 255001),
            reads=keys_of(
                attention_bias=False,
                hidden_act="silu",
                layer_norm_eps=1e-5,
                logit_scale=0.0625,
                use_qk_norm=False,
            ),
            norm="LayerNorm",
            norm_eps="layer_norm_eps",
            logits_multiplier="logit_scale",
            rope=Rope(theta=5e5),
        ),
        "cohere2": Family(
            module="cohere2",
            prefix="Cohere2",
            sizes=Sizes(40, 8192, 256000, 64, None, None, 22528, 8192, True, 255001),
            reads=keys_of(
                attention_bias=False, hidden_act="silu", layer_norm_eps=1e-5, logit_scale=0.0625
            ),
            norm="LayerNorm",
            norm_eps="layer_norm_eps",
            logits_multiplier="logit_scale",
            windows=Windows(WindowedLayers.PATTERN, 4096, every=4),
        ),
        "exaone4": Family(
            module="exaone4",
            prefix="Exaone4",
            module_launches=56,
            sizes=Sizes(32, 4096, 102400, 32, 32, None, 16384, 2048, False, 2),
            reads=keys_of(hidden_act="silu", rms_norm_eps=1e-5),
            windows=Windows(
                WindowedLayers.PATTERN, 4096, every=4, may_be_null=False, full_layers_ask=True
            ),
        ),
        "gemma": Family(
            module="gemma",
            prefix="Gemma",
            sizes=Sizes(28, 3072, 256000, 16, 16, 256, 24576, 8192, True, 1),
            reads=keys_of(attention_bias=False, hidden_act=_GELU, rms_norm_eps=1e-6),
            embedding_scaled_by_width=True,
        ),
        "gemma2": Family(
            module="gemma2",
            prefix="Gemma2",
            module_launches=64,
            sizes=Sizes(26, 2304, 256000, 8, 4, 256, 9216, 8192, True, 1),
            reads=keys_of(
                attention_bias=False,
                attn_logit_softcapping=50.0,
                final_logit_softcapping=30.0,
                hidden_activation=_GELU,
                query_pre_attn_scalar=256,
                rms_norm_eps=1e-6,
            ),
            embedding_scaled_by_width=True,
            logits_softcap="final_logit_softcapping",
            windows=Windows(WindowedLayers.FIXED_PATTERN, 4096, every=2),
            overflows_in_float16=True,
        ),
        "gemma3_text": Family(
            module="gemma3",
            prefix="Gemma3",
            module_launches=85,
            sizes=Sizes(26, 2304, 262208, 8, 4, 256, 9216, 131072, True, 1),
            reads=keys_of(
                attention_bias=False,
                attn_logit_softcapping=None,
                final_logit_softcapping=None,
                hidden_activation=_GELU,
                query_pre_attn_scalar=256,
                rms_norm_eps=1e-6,
            ),
            embedding_scaled_by_width=True,
            logits_softcap="final_logit_softcapping",
            rope=Rope(theta=1e6, per_layer_type=True, sliding_theta_key="rope_local_base_freq"),
            windows=Windows(WindowedLayers.PATTERN, 4096, every=6),
            overflows_in_float16=True,
        ),
        "glm": Family(
            module="glm",
            prefix="Glm",
            sizes=Sizes(40, 4096, 151552, 32, 2, 128, 13696, 131072, False, None),
            reads=keys_of(attention_bias=True, hidden_act="silu", rms_norm_eps=1.5625e-7),
            rope=Rope(rotated_part=0.5),
        ),
        "glm4": Family(
            module="glm4",
            prefix="Glm4",
            module_launches=61,
            sizes=Sizes(40, 4096, 151552, 32, 2, 128, 13696, 131072, False, None),
            reads=keys_of(attention_bias=True, hidden_act="silu", rms_norm_eps=1.5625e-7),
            rope=Rope(rotated_part=0.5),
            overflows_in_float16=True,
        ),
        "granite": Family(
            module="granite",
            prefix="Granite",
            sizes=Sizes(32, 4096, 32000, 32, None, None, 11008, 2048, False, 2),
            reads=keys_of(
                attention_bias=False,
                attention_multiplier=1.0,
                embedding_multiplier=1.0,
                hidden_act="silu",
                logits_scaling=1.0,
                mlp_bias=False,
                residual_multiplier=1.0,
                rms_norm_eps=1e-6,
            ),
            lean=LeanLayout(
                "attention_bias", "attention_bias", "mlp_bias", scaling="attention_multiplier"
            ),
            embedding_multiplier="embedding_multiplier",
            residual_multiplier="residual_multiplier",
            logits_divisor="logits_scaling",
        ),
        "helium": Family(
            module="helium",
            prefix="Helium",
            sizes=Sizes(24, 2560, 48000, 20, 20, 128, 7040, 4096, False, 2),
            reads=keys_of(
                attention_bias=False, hidden_act="silu", mlp_bias=False, rms_norm_eps=1e-8
            ),
            rope=Rope(theta=1e5),
        ),
        "llama": Family(
            module="llama",
            prefix="Llama",
            sizes=Sizes(32, 4096, 32000, 32, None, None, 11008, 2048, False, 2),
            reads=keys_of(
                attention_bias=False, hidden_act="silu", mlp_bias=False, rms_norm_eps=1e-6
            ),
            lean=LeanLayout("attention_bias", "attention_bias", "mlp_bias"),
        ),
        "ministral": Family(
            module="ministral",
            prefix="Ministral",
            sizes=Sizes(32, 4096, 32000, 32, 8, None, 14336, 131072, False, 2),
            reads=keys_of(hidden_act="silu", rms_norm_eps=1e-6),
            lean=LeanLayout(),
            windows=Windows(WindowedLayers.ALL_UNLESS_LISTED, 4096),
        ),
        "mistral": Family(
            module="mistral",
            prefix="Mistral",
            sizes=Sizes(32, 4096, 32000, 32, 8, None, 14336, 131072, False, 2),
            reads=keys_of(hidden_act="silu", rms_norm_eps=1e-6),
            lean=LeanLayout(),
            windows=Windows(WindowedLayers.ALL, 4096),
        ),
        "olmo": Family(
            module="olmo",
            prefix="Olmo",
            module_launches=32,
            sizes=Sizes(32, 4096, 50304, 32, None, None, 11008, 2048, False, 50279),
            reads=keys_of(attention_bias=False, clip_qkv=None, hidden_act="silu"),
            norm="LayerNorm",
            norm_eps=None,
        ),
        "olmo2": Family(
            module="olmo2",
            prefix="Olmo2",
            module_launches=58,
            sizes=Sizes(32, 4096, 50304, 32, None, None, 11008, 2048, False, 50279),
            reads=keys_of(attention_bias=False, hidden_act="silu", rms_norm_eps=1e-5),
        ),
        "olmo3": Family(
            module="olmo3",
            prefix="Olmo3",
            module_launches=59,
            sizes=Sizes(32, 4096, 50304, 32, None, None, 11008, 2048, False, 50279),
            reads=keys_of(attention_bias=False, hidden_act="silu", rms_norm_eps=1e-5),
            rope=Rope(theta=5e5, per_layer_type=True),
            windows=Windows(WindowedLayers.FIXED_PATTERN, 4096, every=4),
        ),
        "phi3": Family(
            module="phi3",
            prefix="Phi3",
            sizes=Sizes(32, 3072, 32064, 32, None, None, 8192, 4096, False, 32000),
            reads=keys_of(hidden_act="silu", rms_norm_eps=1e-5),
            rope=Rope(original_positions=4096, renamed_kinds=_YARN_IS_LONGROPE),
            windows=Windows(WindowedLayers.ALL, None),
        ),
        "qwen2": Family(
            module="qwen2",
            prefix="Qwen2",
            sizes=Sizes(32, 4096, 151936, 32, 32, None, 22016, 32768, False, None),
            reads=keys_of(hidden_act="silu", rms_norm_eps=1e-6),
            lean=LeanLayout(query_bias=True),
            windows=Windows(WindowedLayers.FROM_MAX_WINDOW_LAYERS, 4096, on_request=True),
        ),
        "qwen3": Family(
            module="qwen3",
            prefix="Qwen3",
            sizes=Sizes(32, 4096, 151936, 32, 32, 128, 22016, 32768, False, None),
            reads=keys_of(attention_bias=False, hidden_act="silu", rms_norm_eps=1e-6),
            lean=LeanLayout("attention_bias", "attention_bias", has_head_norms=True),
            windows=Windows(WindowedLayers.FROM_MAX_WINDOW_LAYERS, 4096, on_request=True),
        ),
        "seed_oss": Family(
            module="seed_oss",
            prefix="SeedOss",
            sizes=Sizes(64, 4096, 155136, 80, 8, 128, 27648, 524288, False, 2),
            reads=keys_of(
                attention_bias=True,
                attention_out_bias=False,
                hidden_act="silu",
                mlp_bias=False,
                rms_norm_eps=1e-6,
            ),
            lean=LeanLayout("attention_bias", "attention_out_bias", "mlp_bias"),
        ),
        "smollm3": Family(
            module="smollm3",
            prefix="SmolLM3",
            sizes=Sizes(36, 2048, 128256, 16, 4, None, 11008, 32768, True, 128001),
            reads=keys_of(
                attention_bias=False, hidden_act="silu", mlp_bias=False, rms_norm_eps=1e-6
            ),
            rope=Rope(theta=2e6),
            windows=Windows(WindowedLayers.ROTATED, None, on_request=True),
        ),
        "starcoder2": Family(
            module="starcoder2",
            prefix="Starcoder2",
            module_launches=26,
            sizes=Sizes(30, 3072, 49152, 24, 2, None, 12288, 4096, True, 50256),
            reads=keys_of(hidden_act=_GELU, norm_epsilon=1e-5, use_bias=True),
            norm="LayerNorm",
            norm_eps="norm_epsilon",
            has_gate=False,
            windows=Windows(WindowedLayers.ALL, None),
        ),
        **DENSE_FAMILIES,
        **EXPERT_FAMILIES,
    }
)
"""Every served family by its `model_type`."""
