"""The forms in which models publish their `config.json`, shrunk to a few kilobytes of weights.

Keys, their absence, nulls and nesting are those of the named models as their authors, or the tools
that converted them, wrote them; sizes are small, and so are the lengths from which a scaling of the
rotary embedding begins to matter. Where a model's scaling is a matter of its own sizes, such as
LongRoPE's factors, there are as many as the small heads need.
"""

from collections.abc import Mapping

from tests.published_dense_configs import PUBLISHED_DENSE, PUBLISHED_GPT2
from tests.published_expert_configs import PUBLISHED_EXPERTS

NUM_LAYERS = 4
VOCAB_SIZE = 128

_SMALL = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "max_position_embeddings": 256,
    "num_attention_heads": 4,
    "num_hidden_layers": NUM_LAYERS,
    "vocab_size": VOCAB_SIZE,
}
_GROUPED = {**_SMALL, "num_key_value_heads": 2}
_SHORT = [1.0, 1.08, 1.1, 1.2, 1.3, 1.5]
_LONG = [1.1, 1.3, 2.0, 2.5, 3.5, 4.0]


def _llama(**keys: object) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "model_type": "llama",
        "rms_norm_eps": 1e-05,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.40.1",
        "use_cache": True,
        **_GROUPED,
        **keys,
    }


def _llama3(**keys: object) -> dict[str, object]:
    return {
        **_llama(attention_bias=False, attention_dropout=0.0, mlp_bias=False, pretraining_tp=1),
        "rope_theta": 500000.0,
        **keys,
    }


def _llama3_scaling(factor: float) -> dict[str, object]:
    return {
        "factor": factor,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 32,
        "rope_type": "llama3",
    }


def _mistral(**keys: object) -> dict[str, object]:
    return {
        "architectures": ["MistralForCausalLM"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "model_type": "mistral",
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.34.0.dev0",
        "use_cache": True,
        **_GROUPED,
        **keys,
    }


def _qwen(model_type: str, **keys: object) -> dict[str, object]:
    return {
        "architectures": [f"{model_type.capitalize()}ForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "max_window_layers": NUM_LAYERS,
        "model_type": model_type,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 131072,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.43.1",
        "use_cache": True,
        "use_sliding_window": False,
        **_GROUPED,
        **keys,
    }


def _phi3(**keys: object) -> dict[str, object]:
    return {
        "_name_or_path": "Phi-3-mini-128k-instruct",
        "architectures": ["Phi3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "auto_map": {
            "AutoConfig": "configuration_phi3.Phi3Config",
            "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM",
        },
        "bos_token_id": 1,
        "embd_pdrop": 0.0,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "model_type": "phi3",
        "original_max_position_embeddings": 64,
        "pad_token_id": 0,
        "resid_pdrop": 0.0,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "sliding_window": 262144,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.40.2",
        "use_cache": True,
        **_SMALL,
        "num_key_value_heads": 4,
        **keys,
    }


def _gemma(model_type: str, **keys: object) -> dict[str, object]:
    return {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "head_dim": 16,
        "hidden_activation": "gelu_pytorch_tanh",
        "initializer_range": 0.02,
        "model_type": model_type,
        "pad_token_id": 0,
        "rms_norm_eps": 1e-06,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        **_GROUPED,
        **keys,
    }


def _without(config: Mapping[str, object], *names: str) -> dict[str, object]:
    return {name: value for name, value in config.items() if name not in names}


_YARN = {"factor": 4.0, "original_max_position_embeddings": 64}
_GEMMA2 = _gemma(
    "gemma2",
    architectures=["Gemma2ForCausalLM"],
    attn_logit_softcapping=50.0,
    cache_implementation="hybrid",
    final_logit_softcapping=30.0,
    hidden_act="gelu_pytorch_tanh",
    query_pre_attn_scalar=16,
    rope_theta=10000.0,
    sliding_window=8,
    transformers_version="4.42.0.dev0",
)
_GEMMA3 = _gemma(
    "gemma3_text",
    architectures=["Gemma3ForCausalLM"],
    attn_logit_softcapping=None,
    cache_implementation="hybrid",
    final_logit_softcapping=None,
    query_pre_attn_scalar=16,
    rope_local_base_freq=10000,
    rope_scaling=None,
    rope_theta=1000000,
    sliding_window=8,
    sliding_window_pattern=2,
    transformers_version="4.50.0.dev0",
)
_OLMO2: dict[str, object] = {
    "architectures": ["Olmo2ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "model_type": "olmo2",
    "pad_token_id": 0,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 500000,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "transformers_version": "4.47.0.dev0",
    "use_cache": False,
    **_SMALL,
    "num_key_value_heads": 4,
}
_OLMO3: dict[str, object] = {
    **_OLMO2,
    "architectures": ["Olmo3ForCausalLM"],
    "model_type": "olmo3",
    "sliding_window": 8,
    "layer_types": [*["sliding_attention"] * 3, "full_attention"],
    "dtype": "bfloat16",
    "transformers_version": "4.57.0.dev0",
}
_STARCODER2 = {
    "activation_function": "gelu",
    "architectures": ["Starcoder2ForCausalLM"],
    "attention_dropout": 0.1,
    "attention_softmax_in_fp32": True,
    "bos_token_id": 0,
    "embedding_dropout": 0.1,
    "eos_token_id": 0,
    "hidden_act": "gelu_pytorch_tanh",
    "initializer_range": 0.018042,
    "layer_norm_epsilon": 1e-05,
    "mlp_type": "default",
    "model_type": "starcoder2",
    "norm_epsilon": 1e-05,
    "norm_type": "layer_norm",
    "residual_dropout": 0.1,
    "rope_theta": 999999.4420358813,
    "scale_attention_softmax_in_fp32": True,
    "scale_attn_weights": True,
    "sliding_window": 8,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.37.0.dev0",
    "use_bias": True,
    "use_cache": True,
    **_GROUPED,
}
_EXAONE4 = {
    "architectures": ["Exaone4ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "head_dim": 12,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "layer_types": [*["sliding_attention"] * 3, "full_attention"],
    "model_type": "exaone4",
    "pad_token_id": 0,
    "rms_norm_eps": 1e-05,
    "rope_scaling": _llama3_scaling(16.0),
    "rope_theta": 1000000,
    "sliding_window": 8,
    "sliding_window_pattern": "LLLG",
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.54.0.dev0",
    "use_cache": True,
    **_GROUPED,
}
_COHERE = {
    "architectures": ["CohereForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 5,
    "eos_token_id": 6,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-05,
    "logit_scale": 0.0625,
    "model_type": "cohere",
    "model_max_length": 256,
    "pad_token_id": 0,
    "rope_theta": 8000000.0,
    "torch_dtype": "float16",
    "transformers_version": "4.38.2",
    "use_cache": True,
    "use_qk_norm": False,
    **_SMALL,
    "num_key_value_heads": 4,
}
_GRANITE = _llama(
    architectures=["GraniteForCausalLM"],
    attention_bias=False,
    attention_dropout=0.1,
    attention_multiplier=0.0625,
    embedding_multiplier=12.0,
    logits_scaling=8.0,
    mlp_bias=False,
    model_type="granite",
    residual_multiplier=0.22,
    rope_scaling=None,
    rope_theta=5000000.0,
    tie_word_embeddings=True,
    transformers_version="4.47.0.dev0",
)
_GLM4 = {
    "architectures": ["Glm4ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "eos_token_id": [2, 3, 4],
    "head_dim": 12,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "model_type": "glm4",
    "pad_token_id": 2,
    "partial_rotary_factor": 0.5,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.51.2",
    "use_cache": True,
    **_GROUPED,
}
_SMOLLM3 = {
    **_qwen("smollm3", pretraining_tp=2, rope_scaling=None),
    "architectures": ["SmolLM3ForCausalLM"],
    "attention_bias": False,
    "layer_types": ["full_attention"] * NUM_LAYERS,
    "mlp_bias": False,
    "no_rope_layer_interval": 4,
    "no_rope_layers": [1, 1, 1, 0],
    "pad_token_id": 0,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "transformers_version": "4.54.0.dev0",
}

PUBLISHED: Mapping[str, dict[str, object]] = {
    # Llama and what has its layers
    "llama-1, as first converted": _without(
        _llama(pad_token_id=-1, max_sequence_length=256, torch_dtype="float16"),
        "num_key_value_heads",
    ),
    "llama-1, pad 0 and no eos": _without(_llama(pad_token_id=0), "eos_token_id", "bos_token_id"),
    "llama-2": _llama(
        _name_or_path="meta-llama/Llama-2-13b-hf",
        pretraining_tp=1,
        rope_scaling=None,
        torch_dtype="float16",
        transformers_version="4.32.0.dev0",
    ),
    "vicuna-16k, linear": _llama(rope_scaling={"factor": 4.0, "type": "linear"}),
    "code-llama": _llama(rope_scaling=None, rope_theta=1000000),
    "dynamic by type": _llama(rope_scaling={"factor": 2.0, "type": "dynamic"}),
    "dynamic by rope_type": _llama(rope_scaling={"factor": 2.0, "rope_type": "dynamic"}),
    "tiny-llama": _llama(pretraining_tp=1, rope_scaling=None, torch_dtype="float32"),
    "yi": _llama(pad_token_id=0, rope_theta=5000000.0, sliding_window=None),
    "yi, attention by key": _llama(attention_bias=False, rope_scaling={"type": "default"}),
    "llama-3": _llama3(rope_scaling=None, eos_token_id=2),
    "llama-3.1": _llama3(eos_token_id=[2, 3, 4], rope_scaling=_llama3_scaling(8.0)),
    "llama-3.2": _llama3(
        head_dim=12,
        rope_scaling=_llama3_scaling(32.0),
        tie_word_embeddings=True,
        transformers_version="4.45.0.dev0",
    ),
    "llama-3.3, type and rope_type": _llama3(
        rope_scaling={**_llama3_scaling(8.0), "type": "llama3"}
    ),
    "deepseek-r1-distill-llama": _llama3(rope_scaling=_llama3_scaling(8.0), eos_token_id=2),
    "smollm2": _llama3(
        is_llama_config=True,
        rope_interleaved=False,
        rope_scaling=None,
        rope_theta=100000,
        tie_word_embeddings=True,
        **{"transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}}},
    ),
    "yarn-llama-2": _llama(
        architectures=["LlamaForCausalLM"],
        auto_map={"AutoModelForCausalLM": "modeling_llama_together_yarn.LlamaForCausalLM"},
        rope_scaling={**_YARN, "finetuned": True, "type": "yarn"},
    ),
    "llama, saved by transformers 5": _without(
        _llama(
            dtype="bfloat16",
            head_dim=12,
            rope_parameters={"rope_theta": 500000.0, "rope_type": "default"},
            transformers_version="5.0.0",
        ),
        "torch_dtype",
    ),
    "llama 3.1, saved by transformers 5": _llama(
        dtype="float16",
        rope_parameters={**_llama3_scaling(8.0), "rope_theta": 500000.0},
        transformers_version="5.3.0",
    ),
    "rope_parameters without rope_theta": _llama(
        rope_parameters={"rope_type": "linear", "factor": 2.0}, rope_theta=20000.0
    ),
    "rope_parameters without any rope_theta": _llama(
        rope_parameters={"rope_type": "linear", "factor": 2.0}
    ),
    "rope_parameters null": _llama(rope_parameters=None, rope_theta=20000.0),
    "rope_scaling beside rope_parameters": _llama(
        rope_scaling={"type": "linear", "factor": 3.0},
        rope_parameters={"rope_type": "default", "rope_theta": 70000.0},
    ),
    "rope_scaling empty": _llama(rope_scaling={}, rope_theta=20000.0),
    "head_dim and kv heads null": _llama(head_dim=None, num_key_value_heads=None),
    "architectures null, dtype auto": _llama(
        architectures=None, torch_dtype="auto", quantization_config=None
    ),
    "no dtype, no version, no eos": _without(
        _llama(eos_token_id=None), "torch_dtype", "transformers_version", "use_cache"
    ),
    "wide heads and biases": _llama(head_dim=32, attention_bias=True, mlp_bias=True),
    "kv heads beside heads that do not divide": _llama(hidden_size=44, head_dim=12),
    # Mistral
    "mistral-v0.1": _mistral(sliding_window=8),
    "mistral-v0.3": _mistral(sliding_window=None, rope_theta=1000000.0, attention_dropout=0.0),
    "mistral-nemo": _mistral(
        attention_dropout=0.0, head_dim=16, rope_theta=1000000.0, sliding_window=None
    ),
    "mistral-small": _mistral(head_dim=16, rope_theta=100000000.0, sliding_window=None),
    "mistral, without window": _without(_mistral(), "tie_word_embeddings"),
    "ministral": {
        **_mistral(head_dim=12, sliding_window=8),
        "model_type": "ministral",
        "architectures": ["MinistralForCausalLM"],
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    # Qwen
    "qwen1.5": _qwen("qwen2", sliding_window=32768, transformers_version="4.37.0"),
    "qwen2.5": _qwen("qwen2"),
    "qwen2.5, yarn of its model card": _qwen("qwen2", rope_scaling={**_YARN, "type": "yarn"}),
    "qwen2.5, window used": _qwen(
        "qwen2", max_window_layers=2, sliding_window=8, use_sliding_window=True
    ),
    "qwen2.5, tied, window null": _qwen("qwen2", sliding_window=None, tie_word_embeddings=True),
    "qwen2.5, saved by transformers 5": _qwen(
        "qwen2",
        dtype="bfloat16",
        layer_types=["full_attention"] * NUM_LAYERS,
        rope_parameters={"rope_theta": 1000000.0, "rope_type": "default"},
        sliding_window=None,
        transformers_version="5.0.0",
    ),
    "deepseek-r1-distill-qwen": _qwen("qwen2", use_mrope=False),
    "qwen3": _qwen(
        "qwen3",
        attention_bias=False,
        head_dim=16,
        rope_scaling=None,
        sliding_window=None,
        tie_word_embeddings=True,
        transformers_version="4.51.0",
    ),
    "qwen3, yarn by rope_type": _qwen(
        "qwen3", head_dim=16, rope_scaling={**_YARN, "rope_type": "yarn"}
    ),
    "yarn with attention_factor": _qwen(
        "qwen3", head_dim=16, rope_scaling={**_YARN, "rope_type": "yarn", "attention_factor": 0.8}
    ),
    "yarn with mscale": _qwen(
        "qwen3",
        head_dim=16,
        rope_scaling={**_YARN, "rope_type": "yarn", "mscale": 1.0, "mscale_all_dim": 0.5},
    ),
    "yarn without truncation": _qwen(
        "qwen3",
        head_dim=16,
        rope_scaling={
            **_YARN,
            "rope_type": "yarn",
            "beta_fast": 16,
            "beta_slow": 2,
            "truncate": False,
        },
    ),
    "yarn without its original length": _qwen(
        "qwen3", head_dim=16, rope_scaling={"rope_type": "yarn", "factor": 2.0}
    ),
    # Phi
    "phi-3-mini-4k": _phi3(rope_scaling=None, sliding_window=8),
    "phi-3-mini-128k, longrope": _phi3(
        rope_scaling={"long_factor": _LONG, "short_factor": _SHORT, "type": "longrope"}
    ),
    "phi-3-mini-128k, su": _phi3(
        rope_scaling={"long_factor": _LONG, "short_factor": _SHORT, "type": "su"}
    ),
    "phi-3-medium, yarn": _phi3(
        rope_scaling={"long_factor": _LONG, "short_factor": _SHORT, "type": "yarn"}
    ),
    "phi-4": _without(
        _phi3(rope_scaling=None, sliding_window=None, num_key_value_heads=2, rope_theta=250000),
        "auto_map",
    ),
    "phi-4-mini, partial": _phi3(
        full_attn_mod=1,
        interpolate_factor=1,
        lm_head_bias=False,
        mlp_bias=False,
        num_key_value_heads=2,
        partial_rotary_factor=0.5,
        rope_scaling={"long_factor": _LONG[:3], "short_factor": _SHORT[:3], "type": "longrope"},
        tie_word_embeddings=True,
    ),
    # Gemma
    "gemma-1": _without(
        _gemma(
            "gemma",
            architectures=["GemmaForCausalLM"],
            hidden_act="gelu",
            num_key_value_heads=1,
            rope_scaling=None,
            rope_theta=10000.0,
            transformers_version="4.38.0.dev0",
        ),
        "hidden_activation",
    ),
    "gemma-1.1, activation null": _gemma(
        "gemma", hidden_act="gelu_pytorch_tanh", hidden_activation=None, rope_theta=10000.0
    ),
    "gemma-2": _GEMMA2,
    "gemma-3-1b": _GEMMA3,
    "gemma-3, linear": {**_GEMMA3, "rope_scaling": {"factor": 8.0, "rope_type": "linear"}},
    "gemma-3, saved by transformers 5": {
        **_without(_GEMMA3, "rope_scaling", "rope_theta", "rope_local_base_freq"),
        "_sliding_window_pattern": 2,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "rope_parameters": {
            "full_attention": {"factor": 8.0, "rope_theta": 1000000, "rope_type": "linear"},
            "sliding_attention": {"rope_theta": 10000, "rope_type": "default"},
        },
        "tie_word_embeddings": True,
        "use_bidirectional_attention": False,
    },
    # Others
    "smollm3": _SMOLLM3,
    "smollm3, yarn": {**_SMOLLM3, "rope_scaling": {**_YARN, "rope_type": "yarn"}},
    "smollm3, without layer lists": _without(_SMOLLM3, "layer_types", "no_rope_layers"),
    "starcoder2": _STARCODER2,
    "starcoder2-15b, window null": {**_STARCODER2, "sliding_window": None},
    "olmo-1": {
        **_without(_OLMO2, "rms_norm_eps"),
        "architectures": ["OlmoForCausalLM"],
        "clip_qkv": None,
        "model_type": "olmo",
        "rope_theta": 10000.0,
    },
    "olmo-7b-0424, clipped": {
        **_without(_OLMO2, "rms_norm_eps"),
        "clip_qkv": 0.5,
        "model_type": "olmo",
        "rope_theta": 10000.0,
    },
    "olmo-2": _OLMO2,
    "olmo-3": _OLMO3,
    "olmo-3, yarn": {
        **_OLMO3,
        "rope_scaling": {**_YARN, "attention_factor": 1.2079, "rope_type": "yarn"},
    },
    "granite-3": _GRANITE,
    "command-r": _COHERE,
    "command-r-plus": {**_COHERE, "use_qk_norm": True, "tie_word_embeddings": True},
    "command-r7b": {
        **_without(_COHERE, "use_qk_norm", "model_max_length"),
        "_sliding_window_pattern": 4,
        "architectures": ["Cohere2ForCausalLM"],
        "cache_implementation": "hybrid",
        "head_dim": 12,
        "layer_switch": 4,
        "logit_scale": 0.25,
        "model_type": "cohere2",
        "order_of_interleaved_layers": "local_attn_first",
        "position_embedding_type": "rope_gptj",
        "rope_scaling": None,
        "rope_theta": 50000.0,
        "rotary_pct": 1.0,
        "sliding_window": 8,
        "sliding_window_pattern": 4,
        "use_embedding_sharing": True,
        "use_gated_activation": True,
        "use_parallel_block": True,
        "use_parallel_embedding": True,
    },
    "glm-4-9b-hf": {
        **_GLM4,
        "architectures": ["GlmForCausalLM"],
        "attention_bias": True,
        "model_type": "glm",
    },
    "glm-4-0414": _GLM4,
    "exaone-4": _EXAONE4,
    "exaone-4-1.2b, all full": {
        **_EXAONE4,
        "layer_types": ["full_attention"] * NUM_LAYERS,
        "sliding_window": None,
        "sliding_window_pattern": None,
        "tie_word_embeddings": True,
    },
    "helium": _llama(
        architectures=["HeliumForCausalLM"], head_dim=12, mlp_bias=False, model_type="helium"
    ),
    "arcee": _llama(
        architectures=["ArceeForCausalLM"],
        head_dim=12,
        hidden_act="relu2",
        model_type="arcee",
        rope_scaling={
            **_YARN,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "mscale": 1.0,
            "rope_type": "yarn",
        },
    ),
    "seed-oss": _llama(
        architectures=["SeedOssForCausalLM"],
        attention_bias=True,
        attention_out_bias=False,
        head_dim=16,
        model_type="seed_oss",
        residual_dropout=0.1,
        rope_scaling={"rope_type": "default"},
    ),
    **{name: {**_SMALL, **keys} for name, keys in PUBLISHED_EXPERTS.items()},
    **{name: {**_SMALL, **keys} for name, keys in PUBLISHED_DENSE.items()},
    **PUBLISHED_GPT2,
}
"""By the model, or the form, that each stands for."""
