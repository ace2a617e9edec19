"""What `/tokenizer_info` tells of each kind of tokenizer."""

from pathlib import Path

from coordinator.text.tokenizer_info import tokenizer_info
from stagecoach.model_files import GgufTokenizer, HfTokenizerFiles


def test_special_tokens_are_texts_and_paths_stay_here() -> None:
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": {"__type": "AddedToken", "content": "<s>", "special": True},
        "eos_token": "</s>",
        "add_bos_token": True,
        "vocab_file": "/home/somebody/vocab.json",
        "auto_map": {"AutoTokenizer": ["code.Tokenizer", None]},
        "chat_template": "old",
    }
    found = tokenizer_info(
        HfTokenizerFiles(
            tokenizer_json=Path("t.json"), tokenizer_config=config, chat_template="new"
        )
    )
    assert found == {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "add_bos_token": True,
        "chat_template": "new",
    }


def test_a_gguf_file_tells_the_same() -> None:
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": ["<s>", "</s>", "a"],
        "tokenizer.ggml.token_type": [3, 3, 1],
        "tokenizer.ggml.merges": ["a a"],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.chat_template": "template",
    }
    found = tokenizer_info(GgufTokenizer(metadata=metadata))
    assert found is not None
    assert found["bos_token"] == "<s>"
    assert found["eos_token"] == "</s>"
    assert found["add_bos_token"] is True
    assert found["chat_template"] == "template"


def test_a_model_without_a_tokenizer_tells_nothing() -> None:
    assert tokenizer_info(None) is None
