"""Why a model is not served, in words of somebody who chose it by its name."""

from collections.abc import Mapping
from types import MappingProxyType

from stagecoach.contract.errors import UnsupportedModelError
from stagecoach.model_files.families import FAMILIES

_RECURRENT = frozenset({"falcon_mamba", "mamba", "mamba2", "rwkv", "xlstm"})
_PARTLY_RECURRENT = frozenset(
    {
        "bailing_hybrid",
        "bamba",
        "falcon_h1",
        "granitemoehybrid",
        "jamba",
        "kimi_linear",
        "lfm2",
        "lfm2_moe",
        "lfm3",
        "minimax",
        "nemotron_h",
        "olmo_hybrid",
        "qwen3_5",
        "qwen3_5_moe",
        "qwen3_5_moe_text",
        "qwen3_5_text",
        "qwen3_next",
        "recurrent_gemma",
        "zamba",
        "zamba2",
    }
)
_ENCODERS = frozenset(
    {
        "albert",
        "bert",
        "bert-generation",
        "big_bird",
        "camembert",
        "convbert",
        "data2vec-text",
        "deberta",
        "deberta-v2",
        "distilbert",
        "electra",
        "ernie",
        "esm",
        "eurobert",
        "longformer",
        "megatron-bert",
        "modernbert",
        "mpnet",
        "nomic_bert",
        "rembert",
        "roberta",
        "roberta-prelayernorm",
        "roc_bert",
        "roformer",
        "xlm-roberta",
        "xlm-roberta-xl",
        "xmod",
    }
)
_ENCODER_DECODERS = frozenset(
    {
        "bart",
        "bigbird_pegasus",
        "blenderbot",
        "blenderbot-small",
        "fsmt",
        "led",
        "longt5",
        "m2m_100",
        "marian",
        "mbart",
        "mt5",
        "mvp",
        "nllb-moe",
        "pegasus",
        "pegasus_x",
        "plbart",
        "prophetnet",
        "switch_transformers",
        "t5",
        "t5gemma",
        "trocr",
        "umt5",
        "whisper",
    }
)
_OTHER_EXPERTS = "it is a mixture of experts in another way than those that are served"
_OTHER_WAYS: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "its attention adds a bias for the distance between tokens (ALiBi)": frozenset(
            {"bloom", "mpt"}
        ),
        "its attention goes by the distance between tokens, in buckets": frozenset({"cpmant"}),
        "each of its layers has a rotary base of its own": frozenset(
            {"granite_swa", "granitemoe_swa"}
        ),
        "the values of its attention are narrower than the keys": frozenset({"mimo_v2_flash"}),
        "its attention is the difference of two": frozenset({"diffllama"}),
        "its attention looks at tokens that it chooses": frozenset(
            {"deepseek_v4", "doge", "reformer"}
        ),
        "its attention reads a text in any order": frozenset({"xlnet"}),
        "its attention is code of its own in transformers, with a cache of its own": frozenset(
            {"codegen", "falcon", "gpt_neo", "gpt_neox_japanese", "gptj", "xglm", "xlm"}
        ),
        "its positions are added to the embeddings": frozenset({"ctrl", "openai-gpt", "opt"}),
        "its positions have three axes, of which text needs one": frozenset(
            {"cohere_compass_text"}
        ),
        "its head has layers of its own": frozenset({"modernbert-decoder"}),
        "its layers take more than hidden states: embeddings, or keys and values of other layers": (
            frozenset({"gemma3n_text", "gemma4_text", "gemma4_unified_text"})
        ),
        "its layers run several times for each token": frozenset({"hrm_text"}),
        "it reads bytes, in patches of several sizes": frozenset({"blt"}),
        "it only drafts for another model": frozenset(
            {"gemma4_assistant", "gemma4_unified_assistant"}
        ),
        "it takes more than text": frozenset({"moshi"}),
        _OTHER_EXPERTS: frozenset({"dbrx", "flint"}),
    }
)
"""Types by what is different about them."""

_LATENT_KEY = "kv_lora_rank"
"""Key of the width of what keys and values are made of, in multi-head latent attention."""

EXPERT_KEYS = ("moe_num_experts", "n_routed_experts", "num_experts", "num_local_experts")
"""Keys that say how many experts a layer has."""


def not_served(model_type: str, raw: Mapping[str, object]) -> UnsupportedModelError:
    """Says that a model is not of a served family, why, and what would work instead.

    Args:
        model_type: Type that the model's configuration names.
        raw: Configuration of the model.
    """
    return UnsupportedModelError(
        f"model type {model_type!r} is not served: {_reason(model_type, raw)}; "
        f"served are {', '.join(FAMILIES)}",
        model_type=model_type,
    )


def _reason(model_type: str, raw: Mapping[str, object]) -> str:
    if model_type in _ENCODER_DECODERS or raw.get("is_encoder_decoder") is True:
        return "it is an encoder with a decoder, and only plain decoders are"
    if model_type in _ENCODERS:
        return "it is an encoder, which generates no text"
    for way, model_types in _OTHER_WAYS.items():
        if model_type in model_types:
            return way
    text = raw.get("text_config")
    if isinstance(text, Mapping):
        part = text.get("model_type")
        known = f" of type {part!r}" if isinstance(part, str) else ""
        if part in FAMILIES:
            return (
                f"it takes more than text; its language model{known} (text_config) is served once "
                "it is saved as a model of its own"
            )
        return f"it takes more than text, and its language model{known} lies in text_config"
    if any(isinstance(raw.get(key), Mapping) for key in ("vision_config", "audio_config")):
        return "it takes more than text"
    if model_type in _RECURRENT:
        return "it has no attention; its layers are recurrent"
    if model_type in _PARTLY_RECURRENT:
        return "some of its layers have no attention"
    if raw.get(_LATENT_KEY):
        return f"its attention makes keys and values of a narrower row ({_LATENT_KEY})"
    if any(raw.get(key) for key in EXPERT_KEYS):
        return _OTHER_EXPERTS
    return "its layers are built in another way than those of the served families"
