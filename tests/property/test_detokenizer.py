"""Incremental detokenization equals decoding all tokens at once, for any tokens."""

from collections.abc import Callable

import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from coordinator.text.gguf_tokenizer import build_gguf_tokenizer
from coordinator.text.gguf_vocabulary import GgufVocabulary
from coordinator.text.tokenizer import Tokenizer
from stagecoach.contract.errors import UnsupportedModelError
from stagecoach.model_files import GgufTokenizer, open_model
from tests.llama2 import llama2_backend


def small_sentence_piece() -> tokenizers.Tokenizer:
    """A few words, special tokens, and all 256 byte tokens from id 3."""
    words = ["▁", "▁▁", "▁a", "b", "▁é", "�", "<0x4>", "🙂"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [-float(token_id) for token_id in range(len(tokens))],
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * len(words),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }
    return build_gguf_tokenizer(GgufVocabulary.parse(metadata))


def demo() -> tokenizers.Tokenizer:
    files = open_model("demo").tokenizer_files()
    assert isinstance(files, GgufTokenizer)
    return build_gguf_tokenizer(GgufVocabulary.parse(files.metadata))


@pytest.fixture(
    scope="module",
    params=[small_sentence_piece, demo, llama2_backend],
    ids=["small-sentence-piece", "demo-byte-level", "llama2-sentence-piece"],
)
def backend(request: pytest.FixtureRequest) -> tokenizers.Tokenizer:
    load: Callable[[], tokenizers.Tokenizer] = request.param
    return load()


def token_ids(size: int) -> st.SearchStrategy[list[int]]:
    """Any ids; the low ones, which are special, bytes or fragments, more often; some unknown."""
    ids = st.one_of(
        st.integers(0, size - 1), st.integers(0, min(size, 300) - 1), st.integers(size, size + 9)
    )
    return st.lists(ids, max_size=40)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_pushed_and_flushed_text_is_the_decoded_text(
    backend: tokenizers.Tokenizer, data: st.DataObject
) -> None:
    ids = data.draw(token_ids(backend.get_vocab_size()))
    detokenizer = Tokenizer(backend).detokenizer()
    pieces = [detokenizer.push([token_id]) for token_id in ids]
    pieces.append(detokenizer.flush())
    assert "".join(pieces) == backend.decode(ids, skip_special_tokens=True)


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=40))
@example("👩‍👩‍👧‍👦 é नमस्ते 你好")
def test_valid_text_comes_without_replacement_characters(
    backend: tokenizers.Tokenizer, text: str
) -> None:
    ids = backend.encode(text).ids
    detokenizer = Tokenizer(backend).detokenizer()
    pieces = [detokenizer.push([token_id]) for token_id in ids]
    pieces.append(detokenizer.flush())
    decoded = backend.decode(ids, skip_special_tokens=True)
    assert "".join(pieces) == decoded
    if "�" not in decoded:  # a vocabulary may lack some bytes
        assert not any("�" in piece for piece in pieces)


def test_text_comes_as_soon_as_a_character_is_complete(backend: tokenizers.Tokenizer) -> None:
    """Words are not held back."""
    detokenizer = Tokenizer(backend).detokenizer()
    ids = backend.encode("a b a b", add_special_tokens=False).ids
    pieces = [detokenizer.push([token_id]) for token_id in ids]
    assert "".join(pieces) == "a b a b"
    assert detokenizer.flush() == ""


def test_decoders_that_are_not_known_are_refused(backend: tokenizers.Tokenizer) -> None:
    other = tokenizers.Tokenizer.from_str(backend.to_str())
    other.decoder = tokenizers.decoders.WordPiece()
    with pytest.raises(UnsupportedModelError, match="WordPiece"):
        Tokenizer(other)
