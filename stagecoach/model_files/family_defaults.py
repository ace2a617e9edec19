"""What a configuration means by the keys that it leaves out, for every family that is served.

A key that is absent has the value that transformers' class for the family has; a key that is null
does not. `tests/unit/test_model_config.py` compares the table with those classes.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple


class FamilyDefaults(NamedTuple):
    """Values of absent keys of `config.json`; the names are those of the keys."""

    num_hidden_layers: int
    hidden_size: int
    vocab_size: int
    num_attention_heads: int
    num_key_value_heads: int | None
    """None: as many as attention heads."""
    head_dim: int | None
    """None: the hidden size over the attention heads."""
    intermediate_size: int
    max_position_embeddings: int
    tie_word_embeddings: bool
    eos_token_id: int | None


FAMILY_DEFAULTS: Mapping[str, FamilyDefaults] = MappingProxyType(
    {
        "arcee": FamilyDefaults(32, 2560, 32000, 32, None, None, 18432, 4096, False, 128001),
        "cohere": FamilyDefaults(40, 8192, 256000, 64, None, None, 22528, 8192, True, 255001),
        "cohere2": FamilyDefaults(40, 8192, 256000, 64, None, None, 22528, 8192, True, 255001),
        "exaone4": FamilyDefaults(32, 4096, 102400, 32, 32, None, 16384, 2048, False, 2),
        "gemma": FamilyDefaults(28, 3072, 256000, 16, 16, 256, 24576, 8192, True, 1),
        "gemma2": FamilyDefaults(26, 2304, 256000, 8, 4, 256, 9216, 8192, True, 1),
        "gemma3_text": FamilyDefaults(26, 2304, 262208, 8, 4, 256, 9216, 131072, True, 1),
        "glm": FamilyDefaults(40, 4096, 151552, 32, 2, 128, 13696, 131072, False, None),
        "glm4": FamilyDefaults(40, 4096, 151552, 32, 2, 128, 13696, 131072, False, None),
        "granite": FamilyDefaults(32, 4096, 32000, 32, None, None, 11008, 2048, False, 2),
        "helium": FamilyDefaults(24, 2560, 48000, 20, 20, 128, 7040, 4096, False, 2),
        "llama": FamilyDefaults(32, 4096, 32000, 32, None, None, 11008, 2048, False, 2),
        "ministral": FamilyDefaults(32, 4096, 32000, 32, 8, None, 14336, 131072, False, 2),
        "mistral": FamilyDefaults(32, 4096, 32000, 32, 8, None, 14336, 131072, False, 2),
        "olmo": FamilyDefaults(32, 4096, 50304, 32, None, None, 11008, 2048, False, 50279),
        "olmo2": FamilyDefaults(32, 4096, 50304, 32, None, None, 11008, 2048, False, 50279),
        "olmo3": FamilyDefaults(32, 4096, 50304, 32, None, None, 11008, 2048, False, 50279),
        "phi3": FamilyDefaults(32, 3072, 32064, 32, None, None, 8192, 4096, False, 32000),
        "qwen2": FamilyDefaults(32, 4096, 151936, 32, 32, None, 22016, 32768, False, None),
        "qwen3": FamilyDefaults(32, 4096, 151936, 32, 32, 128, 22016, 32768, False, None),
        "seed_oss": FamilyDefaults(64, 4096, 155136, 80, 8, 128, 27648, 524288, False, 2),
        "smollm3": FamilyDefaults(36, 2048, 128256, 16, 4, None, 11008, 32768, True, 128001),
        "starcoder2": FamilyDefaults(30, 3072, 49152, 24, 2, None, 12288, 4096, True, 50256),
    }
)

_OTHER_NORMS = {"cohere", "cohere2", "olmo", "starcoder2"}
_SILU, _GELU = "silu", "gelu_pytorch_tanh"
_BIASED = {"glm", "glm4", "seed_oss"}
_WITHOUT_BIAS_KEY = {"exaone4", "ministral", "mistral", "phi3", "qwen2", "starcoder2"}

LAYER_DEFAULTS: Mapping[str, Mapping[str, object]] = MappingProxyType(
    {
        "attention_bias": {
            family: family in _BIASED for family in FAMILY_DEFAULTS.keys() - _WITHOUT_BIAS_KEY
        },
        "attention_multiplier": {"granite": 1.0},
        "attention_out_bias": {"seed_oss": False},
        "attn_logit_softcapping": {"gemma2": 50.0, "gemma3_text": None},
        "clip_qkv": {"olmo": None},
        "embedding_multiplier": {"granite": 1.0},
        "final_logit_softcapping": {"gemma2": 30.0, "gemma3_text": None},
        "hidden_act": {
            **dict.fromkeys(FAMILY_DEFAULTS.keys() - {"gemma2", "gemma3_text"}, _SILU),
            **{"arcee": "relu2", "gemma": _GELU, "starcoder2": _GELU},
        },
        "hidden_activation": {"gemma2": _GELU, "gemma3_text": _GELU},
        "layer_norm_eps": {"cohere": 1e-5, "cohere2": 1e-5},
        "logit_scale": {"cohere": 0.0625, "cohere2": 0.0625},
        "logits_scaling": {"granite": 1.0},
        "mlp_bias": dict.fromkeys(
            ("arcee", "granite", "helium", "llama", "seed_oss", "smollm3"), False
        ),
        "norm_epsilon": {"starcoder2": 1e-5},
        "query_pre_attn_scalar": {"gemma2": 256, "gemma3_text": 256},
        "residual_multiplier": {"granite": 1.0},
        "rms_norm_eps": {
            **dict.fromkeys(FAMILY_DEFAULTS.keys() - _OTHER_NORMS, 1e-6),
            **dict.fromkeys(("arcee", "exaone4", "olmo2", "olmo3", "phi3"), 1e-5),
            **{"glm": 1.5625e-7, "glm4": 1.5625e-7, "helium": 1e-8},
        },
        "use_bias": {"starcoder2": True},
        "use_qk_norm": {"cohere": False},
    }
)
"""What a layer, or what stands before and behind the layers, reads of `config.json` beside sizes,
rotary embeddings and windows: by key, the families that read it, and its value when it is absent.
"""
