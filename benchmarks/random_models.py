"""Models with random weights, for measuring speed; kept in a cache folder between runs."""

import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

SHAPES = {
    "llama-160m": LlamaConfig(
        num_hidden_layers=12,
        hidden_size=768,
        intermediate_size=3072,
        num_attention_heads=12,
        num_key_value_heads=12,
        vocab_size=32000,
    ),
    "llama-1b": LlamaConfig(
        num_hidden_layers=22,
        hidden_size=2048,
        intermediate_size=5632,
        num_attention_heads=32,
        num_key_value_heads=4,
        vocab_size=32000,
    ),
}
"""The shapes of the peers' figures; decoder layers, widths and heads as published."""


def random_model(shape: str) -> Path:
    """Returns a Hugging Face folder with float16 weights of that shape, made when missing."""
    folder = Path(tempfile.gettempdir()) / "stagecoach-benchmarks" / shape
    if not (folder / "config.json").exists():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(SHAPES[shape], dtype=torch.float16)
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Renamed when complete, so that an interrupted run leaves no half model.
        with tempfile.TemporaryDirectory(dir=folder.parent) as unfinished:
            model.save_pretrained(Path(unfinished) / shape)
            (Path(unfinished) / shape).rename(folder)
    return folder
