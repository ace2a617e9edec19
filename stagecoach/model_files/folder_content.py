"""What lies in a folder that is not a model that can be served, and what would make it one."""

import re
from collections.abc import Collection

from stagecoach.model_files.listing import listed

ADAPTER_CONFIG = "adapter_config.json"

KNOWN_NAMES = (
    "adapter_model.safetensors",
    "adapter_model.bin",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "consolidated.safetensors",
    "consolidated.00.pth",
    "params.json",
    "tf_model.h5",
    "flax_model.msgpack",
    "model.onnx",
)
"""Names to ask a hub for, which shall not be asked for all that it has."""

_OTHER_TOKENIZERS = re.compile(
    r"tekken.*\.json|.*\.model(\.v\w+)?|.*\.tiktoken|vocab\.(json|txt)|merges\.txt"
)
"""Names of tokenizers of which no `tokenizer.json` was made."""

_AUTHORS_FORM = (
    "these are the weights as their authors' own code reads them; take the model in the form of "
    "transformers (often named -hf)"
)
_AS_SAFETENSORS = (
    "load it with transformers and save it with `save_pretrained`, which writes safetensors"
)
_PICKLED = f"weights in files that may hold code ({{}}), which are never loaded: {_AS_SAFETENSORS}"
_FORMATS = {
    **dict.fromkeys((".bin", ".pth", ".pt", ".ckpt"), _PICKLED),
    ".gguf": "GGUF files ({}): name one of them instead of the folder",
    ".onnx": "a model for ONNX ({}): take the one that it was made from",
    ".h5": f"weights for TensorFlow ({{}}): {_AS_SAFETENSORS}",
    ".msgpack": f"weights for Flax ({{}}): {_AS_SAFETENSORS}",
}
"""What a file is by the end of its name."""


def without_config(names: Collection[str]) -> str:
    """Says what a folder without config.json has instead."""
    if any(name.startswith("adapter_") for name in names):
        return f"has no config.json: {_adapter()}"
    if "params.json" in names or _consolidated(names):
        return f"has no config.json: {_AUTHORS_FORM}"
    return f"has no config.json{_instead(names)}"


def without_weights(names: Collection[str]) -> str:
    """Says what a folder with config.json, but without the weights that it needs, has instead."""
    if any(name.startswith("adapter_model") for name in names):
        return f"has no weights: {_adapter()}"
    shards = [name for name in names if name.endswith(".safetensors")]
    if shards and len(consolidated := _consolidated(names)) >= len(shards):
        return f"has no weights but {listed(consolidated)}: {_AUTHORS_FORM}"
    if shards:
        return (
            f"has no model.safetensors, and no model.safetensors.index.json that says what lies in "
            f"{listed(shards)}"
        )
    return (
        f"has no weights: no model.safetensors and no model.safetensors.index.json{_instead(names)}"
    )


def unread_tokenizer(names: Collection[str]) -> str | None:
    """Says what a folder without tokenizer.json has instead; None if it has no tokenizer."""
    found = [name for name in names if _OTHER_TOKENIZERS.fullmatch(name)]
    if not found:
        return None
    return (
        f"has no tokenizer.json, and {listed(found)} is not read: put the model's tokenizer.json "
        "beside it, as repositories in the form of transformers have it (transformers writes one "
        "with `save_pretrained` where it knows the same tokenizer), or take "
        f"{'it' if len(found) == 1 else 'them'} away to serve token ids alone"
    )


def adapter_beside(name: str) -> str:
    """Says that a model has an adapter, which would not be applied."""
    return (
        f"{name} has an adapter beside its weights ({ADAPTER_CONFIG}), which is not served: merge "
        "it into them (peft: `merge_and_unload`, then `save_pretrained`), or take its files away "
        "to serve the model without it"
    )


def _consolidated(names: Collection[str]) -> list[str]:
    return [name for name in names if name.startswith("consolidated")]


def _adapter() -> str:
    return (
        "only an adapter is here, not the model that it adapts; merge it into that one (peft: "
        "`merge_and_unload`, then `save_pretrained`)"
    )


def _instead(names: Collection[str]) -> str:
    for suffix, text in _FORMATS.items():
        found = [name for name in names if name.endswith((suffix, f"{suffix}.index.json"))]
        if found:
            return f"; it has {text.format(listed(found))}"
    return f"; it has {listed(names)}" if names else "; it is empty"
