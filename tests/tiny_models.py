"""Tiny random models of every served family, written to disk as their owners would.

They are float32, have 6 layers and a vocabulary of 128, and weights large enough that the greedy
next token is decided clearly. The same name and overrides always give the same model.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import gguf.quants
import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from stagecoach.model_files import open_model
from tests.few_bits import quantized_as

NUM_LAYERS = 6
VOCAB_SIZE = 128

_SHAPE: dict[str, Any] = {
    "num_hidden_layers": NUM_LAYERS,
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
    "initializer_range": 0.2,
}

_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
_LLAMA4_SCALED = {**_YARN, "original_max_position_embeddings": 8, "llama_4_scaling_beta": 0.5}
_ALPHA = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 1.0, "alpha": 50.0}
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5],
    "long_factor": [2.0, 2.1, 2.2, 2.3, 2.4, 2.5],
}
_ALTERNATING = ["sliding_attention", "full_attention"] * (NUM_LAYERS // 2)
_GRANITE: dict[str, Any] = {
    "embedding_multiplier": 3.0,
    "attention_multiplier": 0.2,
    "residual_multiplier": 0.6,
    "logits_scaling": 2.0,
}
_ALL_KV_HEADS = {"num_key_value_heads": 4}
_ROUTER_BIAS = "e_score_correction_bias"
_GROUPS: dict[str, Any] = {
    "n_routed_experts": 6,
    "n_shared_experts": 2,
    "num_experts_per_tok": 2,
    "n_group": 3,
    "topk_group": 2,
    "moe_intermediate_size": 24,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.5,
}
_LATENT: dict[str, Any] = {
    "kv_lora_rank": 20,
    "q_lora_rank": 24,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
}
_EXPERTS: dict[str, Any] = {
    "num_experts": 5,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
}


def _config(class_name: str, **settings: Any) -> Callable[..., PreTrainedConfig]:
    def make(**overrides: Any) -> PreTrainedConfig:
        values = {**_SHAPE, **settings, **overrides}
        config: PreTrainedConfig = getattr(transformers, class_name)(**values)
        return config

    return make


FAMILIES: dict[str, Callable[..., PreTrainedConfig]] = {
    "llama": _config("LlamaConfig", num_key_value_heads=4),
    "llama-gqa-tied": _config("LlamaConfig", tie_word_embeddings=True),
    "llama-biases": _config("LlamaConfig", attention_bias=True, mlp_bias=True),
    "llama-wide-heads": _config("LlamaConfig", head_dim=32),
    "llama3-rope": _config("LlamaConfig", rope_parameters=_LLAMA3_ROPE),
    "llama-yarn": _config("LlamaConfig", rope_parameters=_YARN),
    "llama-gelu": _config("LlamaConfig", hidden_act="gelu"),
    "mistral": _config("MistralConfig", sliding_window=None),
    "mistral-window": _config("MistralConfig", sliding_window=8),
    "ministral": _config(
        "MinistralConfig", head_dim=12, sliding_window=8, layer_types=_ALTERNATING
    ),
    "qwen2": _config("Qwen2Config"),
    "qwen2-window": _config(
        "Qwen2Config", use_sliding_window=True, sliding_window=8, max_window_layers=3
    ),
    "qwen3": _config("Qwen3Config", head_dim=16, tie_word_embeddings=True),
    "gemma": _config("GemmaConfig", head_dim=16, tie_word_embeddings=True),
    "gemma2": _config(
        "Gemma2Config",
        head_dim=16,
        query_pre_attn_scalar=16,
        sliding_window=8,
        attn_logit_softcapping=5.0,
        final_logit_softcapping=10.0,
    ),
    "gemma3_text": _config(
        "Gemma3TextConfig",
        head_dim=16,
        query_pre_attn_scalar=16,
        sliding_window=8,
        layer_types=_ALTERNATING,
    ),
    "phi3": _config("Phi3Config", sliding_window=None),
    "phi3-longrope": _config(
        "Phi3Config", rope_parameters=_LONGROPE, original_max_position_embeddings=64
    ),
    "phi3-partial": _config(
        "Phi3Config",
        sliding_window=8,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.5,
        },
    ),
    "granite": _config("GraniteConfig", **_GRANITE),
    "olmo": _config("OlmoConfig"),
    "olmo2": _config("Olmo2Config"),
    "olmo3": _config("Olmo3Config", sliding_window=8, layer_types=_ALTERNATING),
    "smollm3": _config("SmolLM3Config", tie_word_embeddings=True, no_rope_layer_interval=2),
    "starcoder2": _config("Starcoder2Config", sliding_window=8, tie_word_embeddings=True),
    "arcee": _config("ArceeConfig", head_dim=12),
    "seed_oss": _config("SeedOssConfig", head_dim=16),
    "exaone4": _config("Exaone4Config", head_dim=12, sliding_window=8, sliding_window_pattern=2),
    "cohere": _config("CohereConfig", logit_scale=0.5, tie_word_embeddings=True),
    "cohere2": _config(
        "Cohere2Config", logit_scale=0.5, sliding_window=8, tie_word_embeddings=True
    ),
    "helium": _config("HeliumConfig", head_dim=12),
    "glm": _config("GlmConfig", head_dim=16),
    "glm4": _config("Glm4Config", head_dim=16),
    "apertus": _config("ApertusConfig", rope_parameters=_LLAMA3_ROPE),
    "bitnet": _config("BitNetConfig"),
    "cwm": _config("CwmConfig", head_dim=16, sliding_window=8, rope_parameters=_LLAMA3_ROPE),
    "ernie4_5": _config("Ernie4_5Config", head_dim=16, use_bias=True, tie_word_embeddings=True),
    "gpt_neox": _config(
        "GPTNeoXConfig", num_key_value_heads=4, rotary_pct=0.5, rotary_emb_base=500.0
    ),
    "gpt_neox-in-a-row": _config(
        "GPTNeoXConfig", num_key_value_heads=4, rotary_pct=0.5, use_parallel_residual=False
    ),
    "gpt2": _config(
        "GPT2Config",
        **_ALL_KV_HEADS,
        n_inner=96,
        scale_attn_by_inverse_layer_idx=True,
        tie_word_embeddings=True,
        initializer_range=0.6,
    ),
    "gpt_bigcode": _config(
        "GPTBigCodeConfig", num_key_value_heads=1, intermediate_size=None, tie_word_embeddings=True
    ),
    "gpt_bigcode-many-heads": _config(
        "GPTBigCodeConfig", **_ALL_KV_HEADS, multi_query=False, n_inner=96
    ),
    "biogpt": _config("BioGptConfig", **_ALL_KV_HEADS),
    "nanochat": _config("NanoChatConfig", final_logit_softcapping=3.0),
    "hunyuan_v1_dense": _config("HunYuanDenseV1Config", head_dim=16, rope_parameters=_ALPHA),
    "hyperclovax": _config("HyperCLOVAXConfig", **_GRANITE),
    "hyperclovax-plain": _config("HyperCLOVAXConfig", use_post_norm=False),
    "internlm3": _config("InternLM3Config", head_dim=16, qkv_bias=True, bias=True),
    "iquestcoder": _config("IQuestCoderConfig", head_dim=16),
    "jais2": _config("Jais2Config"),
    "ministral3": _config("Ministral3Config", head_dim=16, rope_parameters=_LLAMA4_SCALED),
    "nemotron": _config("NemotronConfig"),
    "persimmon": _config("PersimmonConfig", num_key_value_heads=4),
    "phi": _config("PhiConfig", qk_layernorm=True),
    "stablelm": _config("StableLmConfig", partial_rotary_factor=0.5, use_qkv_bias=True),
    "stablelm-parallel": _config(
        "StableLmConfig",
        partial_rotary_factor=0.5,
        qk_layernorm=True,
        use_parallel_residual=True,
    ),
    "vaultgemma": _config(
        "VaultGemmaConfig",
        head_dim=16,
        query_pre_attn_scalar=16,
        sliding_window=8,
        attn_logit_softcapping=5.0,
        final_logit_softcapping=10.0,
    ),
    "mixtral": _config("MixtralConfig", num_local_experts=5, sliding_window=8),
    "qwen2_moe": _config(
        "Qwen2MoeConfig",
        **_EXPERTS,
        shared_expert_intermediate_size=40,
        mlp_only_layers=[1],
        decoder_sparse_step=1,
        use_sliding_window=True,
        sliding_window=8,
        max_window_layers=4,
    ),
    "qwen3_moe": _config(
        "Qwen3MoeConfig", **_EXPERTS, head_dim=16, norm_topk_prob=True, mlp_only_layers=[3]
    ),
    "afmoe": _config(
        "AfmoeConfig",
        **_EXPERTS,
        head_dim=16,
        num_dense_layers=1,
        num_shared_experts=2,
        route_scale=1.5,
        mup_enabled=True,
        sliding_window=8,
        global_attn_every_n_layers=2,
    ),
    "aria_text": _config("AriaTextConfig", moe_num_experts=5, moe_num_shared_experts=1),
    "exaone_moe": _config(
        "ExaoneMoeConfig",
        **{**_EXPERTS, "num_experts": 6},
        n_group=3,
        topk_group=2,
        head_dim=12,
        sliding_window=8,
        sliding_window_pattern=2,
        first_k_dense_replace=1,
    ),
    "deepseek_v2": _config(
        "DeepseekV2Config",
        **{**_GROUPS, **_LATENT, "q_lora_rank": None, "n_group": None, "topk_group": None},
        first_k_dense_replace=1,
        num_key_value_heads=4,
    ),
    "deepseek_v2-groups": _config(
        "DeepseekV2Config",
        **_GROUPS,
        **_LATENT,
        topk_method="group_limited_greedy",
        rope_parameters={**_YARN, "mscale": 0.7, "mscale_all_dim": 0.7},
        num_key_value_heads=4,
    ),
    "deepseek_v3": _config(
        "DeepseekV3Config",
        **_GROUPS,
        **_LATENT,
        first_k_dense_replace=2,
        num_key_value_heads=4,
        rope_parameters={**_YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
    ),
    "glm4_moe_lite": _config("Glm4MoeLiteConfig", **_GROUPS, **_LATENT, num_key_value_heads=4),
    "dots1": _config(
        "Dots1Config", **_GROUPS, first_k_dense_replace=2, sliding_window=8, max_window_layers=4
    ),
    "ernie4_5_moe": _config(
        "Ernie4_5_MoeConfig",
        moe_num_experts=5,
        moe_k=2,
        moe_intermediate_size=24,
        moe_num_shared_experts=1,
        moe_layer_interval=2,
    ),
    "flex_olmo": _config("FlexOlmoConfig", num_experts=5, num_experts_per_tok=2),
    "glm4_moe": _config("Glm4MoeConfig", **_GROUPS, head_dim=16, use_qk_norm=True),
    "hunyuan_v1_moe": _config("HunYuanMoEV1Config", num_experts=5, moe_topk=2, head_dim=12),
    "minimax_m2": _config(
        "MiniMaxM2Config", num_local_experts=5, num_experts_per_tok=2, head_dim=16, rotary_dim=8
    ),
    "solar_open": _config("SolarOpenConfig", **_GROUPS, head_dim=16),
    "olmoe": _config("OlmoeConfig", num_experts=5, num_experts_per_tok=2, clip_qkv=1.0),
    "gpt_oss": _config(
        "GptOssConfig",
        num_local_experts=5,
        num_experts_per_tok=2,
        head_dim=16,
        sliding_window=8,
        swiglu_limit=1.5,
        rope_parameters={**_YARN, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False},
    ),
    "granitemoe": _config("GraniteMoeConfig", num_local_experts=5, **_GRANITE),
    "granitemoeshared": _config(
        "GraniteMoeSharedConfig", num_local_experts=5, shared_intermediate_size=40, **_GRANITE
    ),
}
"""Makes configurations, by the name of the case; a family's cases begin with its `model_type`."""


def needed_keys(model_type: str) -> dict[str, Any]:
    """Keys without which not even transformers can make a model of a type."""
    if model_type == "deepseek_v2":
        return {"num_experts_per_tok": 2}
    if model_type != "dots1":
        return {}
    return {"n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 2}


def tiny_model(
    case: str,
    folder: Path,
    *,
    max_shard_size: str = "1GB",
    rounded_to: torch.dtype = torch.float32,
    **overrides: Any,
) -> Path:
    """Saves a tiny random model as a Hugging Face folder without a tokenizer.

    Args:
        case: A key of `FAMILIES`.
        folder: Where the model's own folder is made.
        max_shard_size: As transformers takes it; "20KB" gives about one shard a layer.
        rounded_to: A dtype that has all the numbers.
        **overrides: Values of the configuration.

    Returns:
        The model's folder.
    """
    config = FAMILIES[case](**overrides)
    with torch.random.fork_rng():
        torch.manual_seed(sum(map(ord, case)))
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            biases = (each for each in model.named_buffers() if each[0].endswith(_ROUTER_BIAS))
            for name, parameter in (*model.named_parameters(), *biases):
                # Norms, biases and some routers start out without effect.
                is_neutral = not parameter.any() or bool((parameter == 1).all())
                if parameter.dim() == 1 or is_neutral:
                    parameter.add_(torch.randn_like(parameter) * 0.2)
                parameter.copy_(parameter.to(rounded_to))
                assert parameter.numel() == 1 or parameter.std() > 0, f"{name} is constant"
    path = folder / case
    model.save_pretrained(path, max_shard_size=max_shard_size)
    return path


def reference_model(path: Path) -> PreTrainedModel:
    """Loads the whole model with transformers, for comparison."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    model.eval()
    return model


def unsplit_tokens(model: Any, prompt: Sequence[int], num_tokens: int) -> list[int]:
    """What transformers generates greedily with the whole model, past any end token.

    Args:
        model: Of `reference_model`.
        prompt: Token ids.
        num_tokens: As many are generated.
    """
    inputs = torch.tensor([list(prompt)])
    with torch.inference_mode():
        output = model.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=num_tokens,
            min_new_tokens=num_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
    tokens: list[int] = output[0, len(prompt) :].tolist()
    return tokens


_GGUF_ARCHITECTURES = {
    "llama": "llama",
    "mixtral": "llama",
    "olmoe": "olmoe",
    "qwen2": "qwen2",
    "qwen2_moe": "qwen2moe",
    "qwen3": "qwen3",
    "qwen3_moe": "qwen3moe",
}

Quantization = gguf.GGMLQuantizationType | Callable[[str], gguf.GGMLQuantizationType]


def tiny_gguf(
    case: str,
    folder: Path,
    *,
    quantization: Quantization = gguf.GGMLQuantizationType.F32,
    rope_factors: bool = False,
    tensors_per_part: int = 0,
    metadata: Mapping[str, object] | None = None,
    **overrides: Any,
) -> Path:
    """Writes a tiny random model of some families as llama.cpp's converter does.

    Args:
        case: A key of `FAMILIES`, of a type in `_GGUF_ARCHITECTURES`.
        folder: Where the file is made, beside the model's Hugging Face folder.
        quantization: Type of the matrices, or what says that of each by its name.
        tensors_per_part: Divide the file into parts of so many tensors; 0: do not.
        rope_factors: True: store the scaling of the rotary frequencies as a tensor.
        metadata: Further fields, or others than usual, by their full names; floats, ints, booleans,
            strings and lists.
        **overrides: Values of the configuration.

    Returns:
        The file, or the first part.
    """
    model: Any = reference_model(tiny_model(case, folder, **overrides))
    config = model.config
    architecture = _GGUF_ARCHITECTURES[config.model_type]
    path = folder / f"{case}.gguf"
    writer = gguf.GGUFWriter(path, architecture, split_max_tensors=tensors_per_part)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    if config.model_type in ("qwen3", "qwen3_moe"):
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    writer.add_tokenizer_model("none")
    writer.add_token_list([f"token {i}" for i in range(config.vocab_size)])
    writer.add_eos_token_id(config.eos_token_id)
    experts = open_model(str(folder / case)).config.experts
    if experts is not None:
        writer.add_expert_count(experts.num_experts)
        writer.add_expert_used_count(experts.num_chosen)
        if config.model_type.startswith("qwen"):
            writer.add_expert_feed_forward_length(experts.width)
        if experts.shared_width:
            writer.add_expert_shared_feed_forward_length(experts.shared_width)
    names = gguf.get_tensor_name_map(
        getattr(gguf.MODEL_ARCH, architecture.upper()), config.num_hidden_layers
    )
    for name, parameter in _as_converted(model.state_dict()).items():
        stem, _, kind = name.rpartition(".")
        if config.tie_word_embeddings and stem == "lm_head":
            continue
        values = parameter.numpy()
        if architecture == "llama" and stem.endswith(("q_proj", "k_proj")):
            query = stem.endswith("q_proj")
            num_heads = config.num_attention_heads if query else config.num_key_value_heads
            halves = values.reshape(num_heads, 2, -1, *values.shape[1:])
            values = halves.swapaxes(1, 2).reshape(values.shape)
        gguf_name = f"{names.get_name(stem)}.{kind}"
        stored = gguf.GGMLQuantizationType.F32
        if values.ndim > 1 and "gate_inp" not in gguf_name:
            stored = quantization(gguf_name) if callable(quantization) else quantization
        rows = quantized_as(values.reshape(-1, values.shape[-1]), stored)
        rows = rows.reshape(*values.shape[:-1], -1)
        writer.add_tensor(gguf_name, rows, raw_dtype=stored)
    if rope_factors:
        head_dim = config.head_dim
        theta = config.rope_parameters["rope_theta"]
        plain = 1.0 / theta ** (np.arange(0, head_dim, 2, dtype=np.float32) / head_dim)
        scaled = model.model.rotary_emb.inv_freq.numpy()
        writer.add_tensor("rope_freqs.weight", (plain / scaled).astype(np.float32))
    for name, given in (metadata or {}).items():
        fields = writer.kv_data[0]
        fields.pop(name, None)
        if isinstance(given, list):
            writer.add_array(name, given)
        else:
            writer.add_key_value(name, given, gguf.GGUFValueType.get_type(given))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return writer.format_shard_names(path)[0]


def _as_converted(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors by the names for which llama.cpp has its own: gate and up are two for experts too."""
    found: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        stem, _, kind = name.rpartition(".")
        if kind == "gate_up_proj":
            gate, up = tensor.chunk(2, dim=1)
            found |= {f"{stem}.gate_proj.weight": gate, f"{stem}.up_proj.weight": up}
        elif kind == "down_proj":
            found[f"{stem}.down_proj.weight"] = tensor
        else:
            found[name] = tensor
    return found


def read_all(spec: Path) -> dict[str, np.ndarray]:
    """Reads all tensors of a model, as its files show them, by name."""
    files = open_model(str(spec))
    with files.open_tensors(files.tensor_names) as reader:
        return {name: reader.read(name) for name in files.tensor_names}
