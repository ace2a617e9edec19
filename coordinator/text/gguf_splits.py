"""How text is split before byte-level BPE, by the names that GGUF files give it.

The names, and what each stands for, are those of llama.cpp (`src/llama-vocab.cpp`), whose splits
follow the `tokenizer.json` of the models. Each pattern of a split divides what the ones before it
left: what it matches stands alone, and so does what is between.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from tokenizers import Regex, pre_tokenizers

from stagecoach.contract.errors import UnsupportedModelError

# ruff: noqa: RUF001 - signs that look like others are in real splits

MISSING = "default"
"""What a file without a name means."""


class Split(NamedTuple):
    """One way to split text, and what llama.cpp ties to its name."""

    patterns: tuple[str, ...]
    takes_whole_words: bool = False
    """A piece that is a token is taken as it is, whatever the merges say."""
    adds_bos: bool = False
    """Whether a text begins with the begin token where the file does not say."""

    def pre_tokenizer(self) -> pre_tokenizers.PreTokenizer:
        """The split, with bytes spelled as characters afterwards."""
        splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in self.patterns]
        spelled = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return pre_tokenizers.Sequence([*splits, spelled])


def split_named(name: str) -> Split:
    """Returns a split by its name in `tokenizer.ggml.pre`.

    Raises:
        UnsupportedModelError: It is not known.
    """
    if name not in _SPLITS:
        known = ", ".join(sorted(_SPLITS))
        raise UnsupportedModelError(f"GGUF text split {name!r} is not one of {known}")
    return _SPLITS[name]


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_DIGIT = r"\p{N}"
_CONTRACTION = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"


def _words(digits: str, *, contraction: str = f"{_CONTRACTION}|", letters: str = r"\p{L}") -> str:
    """The split that Llama 3 made usual."""
    return (
        rf"{contraction}[^\r\n\p{{L}}\p{{N}}]?{letters}+|{digits}"
        rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
    )


def _cased_words(digits: str, contraction: str) -> str:
    """The split of GPT-4o: a word begins anew with a capital."""
    before = r"[^\r\n\p{L}\p{N}]?"
    return (
        rf"{before}{_UPPER}*{_LOWER}+{contraction}|{before}{_UPPER}+{_LOWER}*{contraction}"
        rf"|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
    )


_LLAMA3 = _words(r"\p{N}{1,3}")
_QWEN2 = _words(r"\p{N}")
_DEEPSEEK3 = (
    r"\p{N}{1,3}",
    r"[一-龥぀-ゟ゠-ヿ]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"""
    r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|" + _SPACES,
)

_BY_SPLIT: Mapping[tuple[str, ...], Split] = MappingProxyType(
    {
        (MISSING,): Split(
            (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"),
        ),
        (
            "gpt-2",
            "phi-2",
            "gigachat",
            "a.x-4.0",
            "mellum",
            "exaone4",
            "mpt",
            "olmo",
            "jais",
        ): Split((_GPT2,)),
        ("trillion", "granite-docling"): Split((_GPT2,)),
        ("starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b"): Split(
            (_DIGIT, _GPT2)
        ),
        ("falcon",): Split((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9][0-9][0-9]")),
        ("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0"): Split(
            (_LLAMA3,), takes_whole_words=True, adds_bos=True
        ),
        ("lfm2",): Split((_LLAMA3,), takes_whole_words=True, adds_bos=True),
        ("dbrx", "smaug-bpe", "chatglm-bpe"): Split((_LLAMA3,)),
        ("glm4",): Split((_LLAMA3,), takes_whole_words=True),
        ("qwen2", "stablelm2", "deepseek-r1-qwen", "kormo", "megrez", "hunyuan"): Split((_QWEN2,)),
        ("solar-open", "grok-2"): Split((_QWEN2,)),
        ("qwen35",): Split(
            (
                rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
                rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}",
            )
        ),
        ("deepseek-v3", "hunyuan-dense", "joyai-llm"): Split(_DEEPSEEK3),
        ("tekken",): Split((_cased_words(r"\p{N}", ""),), takes_whole_words=True, adds_bos=True),
        ("gpt-4o", "llama4", "kanana2", "minimax-m2"): Split(
            (_cased_words(r"\p{N}{1,3}", f"{_CONTRACTION}?"),)
        ),
        ("seed-coder",): Split(
            (
                rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}"
                rf"| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}",
            )
        ),
        ("bailingmoe", "bailingmoe2", "llada-moe"): Split(
            (
                r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
                r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
            )
        ),
        ("superbpe",): Split((r"\p{N}+", r"(?=(\d{3})+(?!\d))")),
        ("deepseek-coder",): Split(
            (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥ࠀ-一가-퟿]+", r"\p{N}")
        ),
    }
)

_SPLITS: Mapping[str, Split] = MappingProxyType(
    {name: split for names, split in _BY_SPLIT.items() for name in names}
)
