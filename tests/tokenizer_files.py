"""Texts and files that tests of tokenizers share."""

import json
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager

from tokenizers import pre_tokenizers

from coordinator.core.request_spec import ChatMessage, ChatPrompt
from coordinator.text.tokenizer import Tokenizer
from coordinator.text.tokenizer_files import load_tokenizer
from stagecoach.contract.errors import ModelFilesError
from stagecoach.model_files import (
    HfTokenizerFiles,
    ModelFiles,
    TensorReader,
    TokenizerFiles,
)
from stagecoach.model_files.model_files import ByteReport, no_report
from tests.llama2 import llama2_folder

# ruff: noqa: RUF001 - scripts that look alike are the point

CORPUS = (
    "Hello, world!",
    "The quick brown fox jumps over 13 lazy dogs; it's 3.14159 o'clock, isn't it?",
    "def f(x):\n    if x > 10:\n\treturn x ** 2  # comment\n\n\n    return None\n",
    "trailing spaces   ",
    "\n\n\t \t mixed \r\n whitespace \u00a0 \u3000 end",
    "année 2024: 1234567890 12 345 6",
    "你好，世界！これはテストです。한국어 텍스트",
    "emoji 😀👩‍👩‍👧‍👦🏳️‍🌈 and flags 🇫🇷",
    "Здравствуй, мир! Γειά σου Κόσμε नमस्ते दुनिया",
    "combining e\u0301 a\u030a, zero\u200bwidth, \ufeffbom, \ufffd",
    '{"json": [1, 2, {"a": null}]}',
    "https://example.org/a?b=c&d=%20#frag  user@example.org",
    "CAPS CamelCase snake_case kebab-case I'LL WE'VE",
    "x" * 200 + " " * 50 + "y",
    "\x00\x01\x7f control",
    "<|im_start|>user\nHi<|im_end|>\n<s>special</s><unk>",
    "a",
    "",
    "ᐃᓄᒃᑎᑐᑦ ⴰⵎⴰⵣⵉⵖ 𝔘𝔫𝔦𝔠𝔬𝔡𝔢",
)

SPACES_BEFORE_DIGITS = "1 12 123    1234  5 ½ ٣"

LEADING_SPACES = "   leading spaces"


class FilesWithTokenizer(ModelFiles):
    """A model of which only the tokenizer is there, so no tensor can be asked for."""

    def __init__(self, files: TokenizerFiles | None) -> None:
        self._files = files

    @property
    def fingerprint(self) -> str:
        return ""

    @property
    def tensor_names(self) -> Collection[str]:
        return ()

    def open_tensors(
        self, names: Collection[str], *, on_download: ByteReport = no_report
    ) -> AbstractContextManager[TensorReader]:
        raise ModelFilesError(f"there are no tensors: {', '.join(names)}")

    def tokenizer_files(self) -> TokenizerFiles | None:
        return self._files


def load(files: TokenizerFiles) -> Tokenizer:
    tokenizer = load_tokenizer(FilesWithTokenizer(files))
    assert tokenizer is not None
    return tokenizer


def byte_level_metadata(**fields: object) -> dict[str, object]:
    """A GGUF byte-level tokenizer that knows single bytes and one merge."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    metadata = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": [*alphabet, "ab", "<s>", "</s>", "<think>"],
        "token_type": [1] * 257 + [3, 3, 4],
        "merges": ["a b"],
        "bos_token_id": 257,
        "eos_token_id": 258,
        **fields,
    }
    return {f"tokenizer.ggml.{name}": v for name, v in metadata.items() if v is not None}


def chat(content: str) -> ChatPrompt:
    return ChatPrompt(messages=(ChatMessage(role="user", content=content),))


def llama2_files() -> HfTokenizerFiles:
    """Those of Llama 2; skips the test where they are not."""
    folder = llama2_folder()
    return HfTokenizerFiles(
        tokenizer_json=folder / "tokenizer.json",
        tokenizer_config=json.loads((folder / "tokenizer_config.json").read_text()),
        chat_template=None,
    )


def with_last_tokens(*tokens: str, types: Sequence[int]) -> dict[str, object]:
    """A byte-level vocabulary whose file names its last token as the end of a text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return byte_level_metadata(
        tokens=[*alphabet, "ab", *tokens],
        token_type=[1] * 257 + list(types),
        bos_token_id=None,
        eos_token_id=256 + len(tokens),
    )
