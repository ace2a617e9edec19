"""What lies in a folder that is not a model that can be served, and what would make it one."""

from collections.abc import Collection

from model_files.listing import listed

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
    if "params.json" in names or any(name.startswith("consolidated") for name in names):
        return (
            "has no config.json: these are the weights as their authors' own code reads them; take "
            "the model in the form of transformers (often named -hf)"
        )
    return f"has no config.json{_instead(names)}"


def without_weights(names: Collection[str]) -> str:
    """Says what a folder with config.json, but without the weights that it needs, has instead."""
    if any(name.startswith("adapter_model") for name in names):
        return f"has no weights: {_adapter()}"
    shards = [name for name in names if name.endswith(".safetensors")]
    if shards:
        return (
            f"has no model.safetensors, and no model.safetensors.index.json that says what lies in "
            f"{listed(shards)}"
        )
    return (
        f"has no weights: no model.safetensors and no model.safetensors.index.json{_instead(names)}"
    )


def adapter_beside(name: str) -> str:
    """Says that a model has an adapter, which would not be applied."""
    return (
        f"{name} has an adapter beside its weights ({ADAPTER_CONFIG}), which is not served: merge "
        "it into them (peft: `merge_and_unload`, then `save_pretrained`), or take its files away "
        "to serve the model without it"
    )


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
