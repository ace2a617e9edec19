"""The tokenizer of Llama 2, which not every machine has."""

import os
from pathlib import Path

import pytest
import tokenizers

_FOLDER = Path(
    os.environ.get(
        "STAGECOACH_LLAMA2_TOKENIZER",
        Path(__file__).resolve().parents[2] / "shared" / "data" / "llama-2-tokenizer",
    )
)


def llama2_folder() -> Path:
    """Where its files are; skips the test where there are none."""
    if not _FOLDER.is_dir():
        pytest.skip(f"no Llama-2 tokenizer at {_FOLDER}; set STAGECOACH_LLAMA2_TOKENIZER")
    return _FOLDER


def llama2_backend() -> tokenizers.Tokenizer:
    """It, as its `tokenizer.json` says; skips the test where there is none."""
    return tokenizers.Tokenizer.from_file(str(llama2_folder() / "tokenizer.json"))
