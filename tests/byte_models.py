"""A tiny random model with a real tokenizer: every byte is a token, and it takes part in chats."""

import json
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from tests.tiny_models import tiny_model

NUM_SPECIAL_TOKENS = 3
VOCAB_SIZE = NUM_SPECIAL_TOKENS + 256
MAX_MODEL_LEN = 512

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def byte_model(
    folder: Path, *, max_model_len: int = MAX_MODEL_LEN, chat_template: str = CHAT_TEMPLATE
) -> Path:
    """Saves the model and its tokenizer as a Hugging Face folder.

    Args:
        folder: Where the model's own folder is made.
        max_model_len: Most tokens of one request.
        chat_template: Its source.

    Returns:
        The model's folder.
    """
    path = tiny_model("llama", folder, vocab_size=VOCAB_SIZE, max_position_embeddings=max_model_len)
    byte_backend().save(str(path / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": chat_template}
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


def byte_backend() -> tokenizers.Tokenizer:
    """The tokenizer of the model."""
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2}
    for spelling in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocabulary[spelling] = len(vocabulary)
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<pad>", "<s>", "</s>"])
    return backend
