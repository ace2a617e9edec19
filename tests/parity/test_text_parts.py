"""Checkpoints that take more than text are served as their language models, exactly."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForImageTextToText

from stagecoach.contract.errors import ModelFilesError, UnsupportedModelError
from stagecoach.model_files import open_model
from stagecoach.model_files.text_part import text_name
from tests.parity.test_layer_stack import PROMPT, generate, load_split
from tests.tiny_models import VOCAB_SIZE, unsplit_tokens

TEXTS = {
    "aria": "aria_text",
    "aya_vision": "cohere2",
    "cohere2_vision": "cohere2",
    "gemma3": "gemma3_text",
    "got_ocr2": "qwen2",
    "idefics3": "llama",
    "internvl": "qwen2",
    "llava": "llama",
    "llava_next": "llama",
    "llava_onevision": "qwen2",
    "mistral3": "mistral",
    "smolvlm": "llama",
    "vipllava": "llama",
}
"""Type of the language model by that of the whole."""

_TEXT: dict[str, Any] = {
    "num_hidden_layers": 3,
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
}
_VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


def tiny_vision_model(model_type: str, folder: Path, *, is_tied: bool = False) -> Path:
    """Saves a tiny random model that takes images, as transformers does."""
    text = {**_TEXT, "model_type": TEXTS[model_type]}
    config = CONFIG_MAPPING[model_type].from_dict(
        {"text_config": text, "vision_config": _VISION, "tie_word_embeddings": is_tied}
    )
    with torch.random.fork_rng():
        torch.manual_seed(sum(map(ord, model_type)))
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:  # norms and biases start out without effect
                    parameter.add_(torch.randn_like(parameter) * 0.2)
    path = folder / model_type
    model.save_pretrained(path)
    return path


def expected_tokens(path: Path, num_tokens: int) -> list[int]:
    """What the whole model generates greedily, without an image."""
    model: Any = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32).eval()
    return unsplit_tokens(model, PROMPT, num_tokens)


@pytest.mark.parametrize("model_type", TEXTS)
def test_text_is_what_the_whole_model_makes_of_it(
    model_type: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tiny_vision_model(model_type, tmp_path)
    with caplog.at_level(logging.INFO):
        assert open_model(str(path)).config.model_type == TEXTS[model_type]
    assert "takes more than text" in caplog.text
    token_ids, _ = generate(load_split(path, 2))
    assert token_ids == expected_tokens(path, len(token_ids))
    assert len(set(token_ids)) > 2, "a model that repeats itself shows nothing"


def test_of_older_checkpoints_the_name_is_in_front_of_all_and_keys_are_above(
    tmp_path: Path,
) -> None:
    """As Gemma 3 was published: sparse keys, end tokens and dtype of the whole model."""
    path = tiny_vision_model("gemma3", tmp_path, is_tied=True)
    file = path / "config.json"
    raw = json.loads(file.read_text())
    raw |= {"eos_token_id": [7, 9], "torch_dtype": raw.pop("dtype")}
    del raw["tie_word_embeddings"]
    raw["text_config"] = {
        key: value for key, value in raw["text_config"].items() if key in {*_TEXT, "model_type"}
    }
    file.write_text(json.dumps(raw))
    (path / "generation_config.json").unlink()
    files = open_model(str(path))
    assert files.config.eos_token_ids == (7, 9)
    assert files.config.checkpoint_dtype == "float32"
    assert files.config.tie_word_embeddings
    token_ids, _ = generate(load_split(path, 3))
    assert token_ids == expected_tokens(path, len(token_ids))


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("language_model.model.layers.3.mlp.up_proj.weight", "model.layers.3.mlp.up_proj.weight"),
        ("language_model.lm_head.weight", "lm_head.weight"),
        ("model.language_model.norm.weight", "model.norm.weight"),
        ("lm_head.weight", "lm_head.weight"),
        ("vision_tower.vision_model.encoder.layers.0.mlp.fc1.bias", None),
        ("model.multi_modal_projector.linear_1.weight", None),
        ("model.layers.0.odd", "model.layers.0.odd"),
    ],
)
def test_tensors_have_the_names_of_the_language_model(name: str, own: str | None) -> None:
    assert text_name(name) == own


def test_what_nobody_knows_is_refused_by_its_name(tmp_path: Path) -> None:
    path = tiny_vision_model("llava", tmp_path)
    file = path / "config.json"
    raw = json.loads(file.read_text())
    raw["text_config"]["num_hidden_layers"] = 2
    file.write_text(json.dumps(raw))
    with pytest.raises(ModelFilesError, match=r"does not use: model\.layers\.2\."):
        load_split(path, 1)
    raw["text_config"] = {"model_type": "mamba"}
    file.write_text(json.dumps(raw))
    with pytest.raises(UnsupportedModelError, match="model type 'mamba' is not served"):
        load_split(path, 1)
