"""Builds the tokenizer that a GGUF file describes.

What the fields mean is settled by llama.cpp's `src/llama-vocab.cpp`. transformers reads the same
fields but takes GPT-2's split of text where it does not know the one that the file names.
"""

from collections.abc import Iterable

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    processors,
)

from coordinator.text.gguf_splits import split_named
from coordinator.text.gguf_vocabulary import USER_DEFINED, GgufVocabulary
from stagecoach.contract.errors import ModelFilesError, UnsupportedModelError

_SPACE_SIGN = "\N{LOWER ONE EIGHTH BLOCK}"


def build_gguf_tokenizer(vocabulary: GgufVocabulary) -> Tokenizer:
    """Builds the tokenizer.

    Raises:
        UnsupportedModelError: The kind of tokenizer, or of its text split, is not known.
        ModelFilesError: The fields contradict each other.
    """
    if vocabulary.model not in _KINDS:
        raise UnsupportedModelError(
            f"GGUF tokenizer {vocabulary.model!r} is not one of {', '.join(_KINDS)}"
        )
    tokenizer = _KINDS[vocabulary.model](vocabulary)
    tokenizer.add_special_tokens(_added_tokens(vocabulary, vocabulary.special_contents))
    tokenizer.add_tokens(_added_tokens(vocabulary, vocabulary.contents_of(USER_DEFINED)))
    tokenizer.post_processor = _post_processor(vocabulary)
    return tokenizer


def _byte_level(vocabulary: GgufVocabulary) -> Tokenizer:
    """BPE over bytes, as GPT-2's."""
    split = split_named(vocabulary.pre)
    if vocabulary.merges is None:
        raise ModelFilesError("tokenizer.ggml.merges is missing: BPE joins nothing without them")
    ids = _ids(vocabulary)
    merges = [_pair(merge) for merge in vocabulary.merges]
    try:
        model = models.BPE(vocab=ids, merges=merges, ignore_merges=split.takes_whole_words)
    except Exception as error:  # of merges that are no tokens; the library has no narrower class
        raise ModelFilesError(f"tokenizer.ggml.merges: {error}") from error
    tokenizer = Tokenizer(model)
    if vocabulary.pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = split.pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentence_piece(vocabulary: GgufVocabulary) -> Tokenizer:
    """SentencePiece's BPE with byte fallback."""
    if not vocabulary.scores:
        raise ModelFilesError("tokenizer.ggml.scores is missing")
    tokenizer = Tokenizer(
        models.BPE(
            vocab=_ids(vocabulary),
            merges=_merges_by_score(vocabulary),
            unk_token=vocabulary.special_tokens.get("unk_token") or None,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefix = [normalizers.Prepend(_SPACE_SIGN)] if vocabulary.adds_space_prefix else []
    strip = [decoders.Strip(" ", 1, 0)] if vocabulary.adds_space_prefix else []
    tokenizer.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", _SPACE_SIGN)])
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(_SPACE_SIGN, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            *strip,
        ]
    )
    return tokenizer


_KINDS = {"gpt2": _byte_level, "llama": _sentence_piece}


def _ids(vocabulary: GgufVocabulary) -> dict[str, int]:
    """Ids of the tokens by their text; the last one counts of equal ones.

    Tokens that spell nothing are never made of text, and are left out.
    """
    return {token: token_id for token_id, token in enumerate(vocabulary.tokens) if token}


def _pair(merge: str) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    return left, right


def _merges_by_score(vocabulary: GgufVocabulary) -> list[tuple[str, str]]:
    """Every way to make a token of two others, by falling score of that token.

    SentencePiece keeps no merges: it joins whichever neighbours make the token of the highest
    score. Equal scores stand in the order of Hugging Face's converter, by the ids involved.
    """
    ids = _ids(vocabulary)
    special = frozenset(vocabulary.special_contents)  # no text is joined to one
    merges = [
        (-vocabulary.scores[token_id], token_id, ids[token[:cut]], ids[token[cut:]])
        for token, token_id in ids.items()
        if token not in special
        for cut in range(1, len(token))
        if token[:cut] in ids and token[cut:] in ids
    ]
    if len(merges) > 1 and len({score for score, *_ in merges}) == 1:
        raise ModelFilesError(
            f"tokenizer.ggml.scores has one score for all of {len(merges)} ways to join tokens, so"
            " that it does not say which comes first"
        )
    tokens = vocabulary.tokens
    return [(tokens[left], tokens[right]) for _, _, left, right in sorted(merges)]


def _added_tokens(vocabulary: GgufVocabulary, contents: Iterable[str]) -> list[AddedToken]:
    return [
        AddedToken(content, normalized=False, rstrip=vocabulary.strips_after(content))
        for content in contents
    ]


def _post_processor(vocabulary: GgufVocabulary) -> processors.PostProcessor:
    """Adds the tokens that begin and end a text."""
    adds_bos = vocabulary.adds_bos
    if adds_bos is None:
        adds_bos = vocabulary.model == "llama" or split_named(vocabulary.pre).adds_bos
    ids = _ids(vocabulary)
    bos = _wanted(vocabulary, "bos_token", adds_bos)
    eos = _wanted(vocabulary, "eos_token", vocabulary.adds_eos)
    return processors.TemplateProcessing(
        single=[*bos, "$A", *eos], special_tokens=[(token, ids[token]) for token in (*bos, *eos)]
    )


def _wanted(vocabulary: GgufVocabulary, name: str, is_added: bool) -> list[str]:
    token = vocabulary.special_tokens.get(name)
    if not is_added or token is None:
        return []
    if not token:
        raise ModelFilesError(
            f"tokenizer.ggml.{name}_id names a token without text, which cannot be put beside texts"
        )
    return [token]
