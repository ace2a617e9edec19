"""Tiny random models with a byte-level tokenizer, so that their output has text."""

import json
from pathlib import Path
from typing import Any

from tokenizers import pre_tokenizers

from coordinator.text.gguf_tokenizer import build_gguf_tokenizer
from coordinator.text.gguf_vocabulary import GgufVocabulary
from tests.tiny_models import tiny_model

_WORDS = ['{"', '":', '",', 'Ġ"', "true", "false", "null", "]}", "Ã©", "ab", "ĠĠ"]
"""Tokens of several bytes, as byte-level BPE spells them; no text is tokenized into these."""

_SPECIAL = ["<s>", "</s>"]

BYTE_TOKENS = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *_WORDS, *_SPECIAL]
EOS_TOKEN_ID = len(BYTE_TOKENS) - 1


def tiny_text_model(folder: Path, *, num_extra_logits: int = 3, **overrides: Any) -> Path:
    """Saves a tiny random llama and its tokenizer, whose ids are those of `BYTE_TOKENS`.

    Args:
        folder: Where the model's own folder is made.
        num_extra_logits: Ids that the model has and the tokenizer does not know.
        **overrides: Values of the configuration.
    """
    values = {
        "vocab_size": len(BYTE_TOKENS) + num_extra_logits,
        "bos_token_id": EOS_TOKEN_ID - 1,
        "eos_token_id": EOS_TOKEN_ID,
        "max_position_embeddings": 1024,
        **overrides,
    }
    path = tiny_model("llama", folder, **values)
    vocabulary = GgufVocabulary.parse(
        {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.tokens": BYTE_TOKENS,
            "tokenizer.ggml.token_type": [1] * (len(BYTE_TOKENS) - 2) + [3, 3],
            "tokenizer.ggml.merges": [],
        }
    )
    build_gguf_tokenizer(vocabulary).save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    return path
