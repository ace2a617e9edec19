"""Tokenizers from GGUF metadata, against transformers' own and llama.cpp's rules."""

import json

import pytest
import tokenizers
from tokenizers import pre_tokenizers

from coordinator.text.gguf_tokenizer import build_gguf_tokenizer
from coordinator.text.gguf_vocabulary import GgufVocabulary
from coordinator.text.tokenizer import Tokenizer
from coordinator.text.tokenizer_files import load_tokenizer
from stagecoach.contract.errors import ModelFilesError, UnsupportedModelError
from stagecoach.model_files import (
    GgufTokenizer,
    HfTokenizerFiles,
)
from tests.tokenizer_files import (
    CORPUS,
    LEADING_SPACES,
    SPACES_BEFORE_DIGITS,
    FilesWithTokenizer,
    byte_level_metadata,
    llama2_files,
    load,
    with_last_tokens,
)


@pytest.fixture(scope="module", name="llama2_files")
def _llama2_files() -> HfTokenizerFiles:
    return llama2_files()


def test_gguf_of_llama2_equals_its_tokenizer_json(llama2_files: HfTokenizerFiles) -> None:
    tokenizer = load(llama2_files)
    model = json.loads(llama2_files.tokenizer_json.read_text())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(model["merges"]):
        ranks.setdefault(left + right, rank)
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [-float(ranks.get(token, 1e6)) for token in tokens],
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * (len(tokens) - 259),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }
    of_gguf = load(GgufTokenizer(metadata=metadata))
    for text in (*CORPUS, SPACES_BEFORE_DIGITS, LEADING_SPACES):
        assert of_gguf.encode(text) == tokenizer.encode(text), text
    assert of_gguf.eos_token_ids == {2}
    for token_id in range(tokenizer.vocab_size):
        assert of_gguf.token_bytes(token_id) == tokenizer.token_bytes(token_id)


@pytest.mark.parametrize("pre", ["llama-bpe", "qwen2"])
def test_splits_equal_those_of_transformers(pre: str) -> None:
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    backend = build_gguf_tokenizer(GgufVocabulary.parse(byte_level_metadata(pre=pre)))
    reference = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(GGUF_PRE_TOKENIZER_SPLITS[pre]), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    for text in (*CORPUS, SPACES_BEFORE_DIGITS, LEADING_SPACES):
        assert backend.pre_tokenizer.pre_tokenize_str(text) == reference.pre_tokenize_str(text)


def test_gguf_flags_decide_which_tokens_surround_a_text() -> None:
    def encode(**fields: object) -> list[int]:
        return load(GgufTokenizer(metadata=byte_level_metadata(**fields))).encode("ab")

    assert encode() == [256]
    assert encode(add_bos_token=True, add_eos_token=True) == [257, 256, 258]
    assert encode(pre="llama-bpe") == [257, 256]
    assert encode(pre="llama-bpe", add_bos_token=False) == [256]


def test_gguf_special_tokens_are_whole_and_silent_and_user_defined_ones_are_whole() -> None:
    tokenizer = load(GgufTokenizer(metadata=byte_level_metadata()))
    token_ids = tokenizer.encode("<s>ab<think></s>")
    assert token_ids == [257, 256, 259, 258]
    detokenizer = tokenizer.detokenizer()
    assert detokenizer.push(token_ids) + detokenizer.flush() == "ab<think>"


@pytest.mark.parametrize("name", ["Phi3", "Phi-3-mini-4k-instruct", "phi3.5", "Llama", None])
def test_control_tokens_of_phi_3_take_the_spaces_after_them(name: str | None) -> None:
    """As in llama.cpp, which knows them by the name of the model, and in their own tokenizer."""
    metadata = with_last_tokens("<s>", "<|end|>", "<note>", "</s>", types=(3, 3, 4, 3))
    tokenizer = load(GgufTokenizer(metadata={**metadata, "general.name": name}))
    takes = name not in ("Llama", None)
    for token in ("<|end|>", "<note>", "</s>"):
        written = f"a {token} \n ab"
        assert (tokenizer.encode(written) == tokenizer.encode(f"a {token}ab")) == takes
        assert len(tokenizer.encode(written)) == (4 if takes else 7)
    assert len(tokenizer.encode("<s> \n ab")) == 5


def test_gguf_end_tokens_include_the_end_of_a_turn() -> None:
    metadata = byte_level_metadata(eot_token_id=257)
    assert load(GgufTokenizer(metadata=metadata)).eos_token_ids == {257, 258}


@pytest.mark.parametrize(
    ("tokens", "types", "expected"),
    [
        (("<|im_start|>", "<|im_end|>", "<|endoftext|>"), (3, 3, 3), {258, 259}),
        (("<|im_start|>", "<|im_end|>", "<|endoftext|>"), (3, 1, 3), {258, 259}),
        (("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>"), (3, 3, 3), {257, 258, 259}),
        (("<start_of_turn>", "<end_of_turn>", "<eos>"), (3, 3, 3), {258, 259}),
        (("<|end|>", "<|call|>", "<|return|>"), (3, 3, 3), {258, 259}),
        (("<|end|>", "</s>", "<|endoftext|>"), (3, 1, 3), {257, 259}),
        (("<|end|>", "</s>", "<|endoftext|>"), (3, 3, 3), {257, 258, 259}),
    ],
)
def test_gguf_end_tokens_are_found_by_what_they_are_called(
    tokens: tuple[str, ...], types: tuple[int, ...], expected: set[int]
) -> None:
    """As llama.cpp finds them, but that `</s>` may be ordinary text."""
    tokenizer = load(GgufTokenizer(metadata=with_last_tokens(*tokens, types=types)))
    assert tokenizer.eos_token_ids == expected
    for token_id in expected:
        name = tokens[token_id - 257]
        assert tokenizer.encode(name) == [token_id]
        assert tokenizer.detokenize([token_id]) == ""


def test_equal_tokens_of_a_gguf_file_all_keep_their_spelling() -> None:
    """The last of them is what text becomes; the ids of the others are still known."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    metadata = byte_level_metadata(
        tokens=[*alphabet, "ab", "ab", "", "", "</s>"],
        token_type=[1] * 260 + [3],
        bos_token_id=None,
        eos_token_id=260,
    )
    loaded = load(GgufTokenizer(metadata=metadata))
    for tokenizer in (loaded, Tokenizer.from_state(loaded.to_state())):
        assert tokenizer.encode("ab") == [257]
        assert tokenizer.detokenize([256, 257, 258, 259]) == "abab"
        assert [tokenizer.token_bytes(i) for i in (256, 258)] == [b"ab", b""]
        assert tokenizer.vocab_size == 261


def test_a_file_that_says_that_it_has_no_tokenizer_has_none() -> None:
    files = GgufTokenizer(metadata={"tokenizer.ggml.model": "none"})
    assert load_tokenizer(FilesWithTokenizer(files)) is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": "t5"}, "GGUF tokenizer 't5' is not one of gpt2, llama"),
        ({"pre": "of-tomorrow"}, "GGUF text split 'of-tomorrow' is not one of .*default, .*gpt-2"),
        ({"pre": "kimi-k2"}, "GGUF text split 'kimi-k2'"),
    ],
)
def test_unknown_gguf_tokenizers_are_refused_by_name(
    fields: dict[str, object], message: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        load(GgufTokenizer(metadata=byte_level_metadata(**fields)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": None}, r"tokenizer\.ggml\.model is missing"),
        ({"tokens": "abc"}, r"tokenizer\.ggml\.tokens is not a list of str"),
        ({"token_type": [1]}, r"tokenizer\.ggml\.token_type has 1 elements for 260 tokens"),
        ({"eos_token_id": 260}, r"eos_token_id is 260, there are 260 tokens"),
        ({"add_bos_token": "yes"}, r"add_bos_token is not of type bool"),
        ({"merges": ["a nothing"]}, r"tokenizer\.ggml\.merges: .*nothing"),
        ({"merges": None}, r"tokenizer\.ggml\.merges is missing"),
        ({"model": "llama"}, r"tokenizer\.ggml\.scores is missing"),
        (
            {"model": "llama", "scores": [0.0] * 259 + [float("nan")]},
            r"tokenizer\.ggml\.scores is NaN at token 259, must be finite",
        ),
        ({"eos_token_id": True}, r"tokenizer\.ggml\.eos_token_id is not of type int"),
        (
            {
                "tokens": ["", *map(str, range(259))],
                "merges": [],
                "bos_token_id": 0,
                "add_bos_token": True,
            },
            r"tokenizer\.ggml\.bos_token_id names a token without text",
        ),
    ],
)
def test_damaged_gguf_metadata_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ModelFilesError, match=message):
        load(GgufTokenizer(metadata=byte_level_metadata(**fields)))
