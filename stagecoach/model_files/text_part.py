"""The language model of a checkpoint that takes more than text.

Its configuration lies in `text_config`, and its tensors have a name in front. Released and older
versions of transformers put that name at different places, and so do its families.
"""

from collections.abc import Mapping

_TYPES = frozenset(
    {
        "aria",
        "aya_vision",
        "cohere2_vision",
        "gemma3",
        "got_ocr2",
        "idefics3",
        "internvl",
        "llava",
        "llava_next",
        "llava_onevision",
        "mistral3",
        "smolvlm",
        "vipllava",
    }
)
"""Types whose language model is a plain decoder that sees images as embeddings among others."""

_FRONTS = (
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
    ("model.language_model.", "model."),
    ("model.text_model.", "model."),
)
"""Beginnings of the names of its tensors, and what they are by themselves."""

_OTHERS = (
    "connector.",
    "image_newline",
    "multi_modal_projector.",
    "vision_model.",
    "vision_tower.",
)
"""Beginnings of the names of what is not of it, also after `model.`."""

_FROM_ABOVE = (
    "bos_token_id",
    "compression_config",
    "dtype",
    "eos_token_id",
    "pad_token_id",
    "quantization_config",
    "torch_dtype",
)
"""Keys of the whole configuration that hold where `text_config` says nothing."""


def text_config(raw: Mapping[str, object]) -> Mapping[str, object] | None:
    """Returns the configuration of the language model.

    Args:
        raw: Content of `config.json`.

    Returns:
        As the language model by itself has it; None where `raw` is of no such checkpoint.
    """
    text = raw.get("text_config")
    if raw.get("model_type") not in _TYPES or not isinstance(text, Mapping):
        return None
    found = {key: raw[key] for key in _FROM_ABOVE if raw.get(key) is not None}
    found |= {key: value for key, value in text.items() if key not in found or value is not None}
    # The pair that is tied is that of the whole model.
    if raw.get("tie_word_embeddings") is not None:
        found["tie_word_embeddings"] = raw["tie_word_embeddings"]
    return found


def text_name(name: str) -> str | None:
    """Returns the name that a tensor has in the language model by itself.

    Args:
        name: Its name in the checkpoint.

    Returns:
        The name; None of what belongs to images. One that nobody knows stays as it is.
    """
    for front, own in _FRONTS:
        if name.startswith(front):
            return own + name.removeprefix(front)
    return None if name.removeprefix("model.").startswith(_OTHERS) else name
