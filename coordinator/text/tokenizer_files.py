"""Loads the tokenizer of a model from its files."""

from collections.abc import Mapping

import tokenizers

from coordinator.text.chat_template import ChatTemplate
from coordinator.text.declared_tokens import add_declared_tokens, declared_tokens
from coordinator.text.end_tokens import end_tokens
from coordinator.text.gguf_tokenizer import build_gguf_tokenizer
from coordinator.text.gguf_vocabulary import GgufVocabulary
from coordinator.text.library_faults import library_faults
from coordinator.text.tokenizer import Tokenizer
from stagecoach.contract.errors import ModelFilesError
from stagecoach.model_files import GgufTokenizer, HfTokenizerFiles, ModelFiles
from stagecoach.model_files.text_file import json_object, read_text

_NO_TOKENIZER = ("none", "no_vocab")
"""What llama.cpp calls a file without one."""


def load_tokenizer(files: ModelFiles) -> Tokenizer | None:
    """Loads the tokenizer of a model.

    Returns:
        None for a model without one, which takes and gives token ids only.

    Raises:
        UnsupportedModelError: The tokenizer is of a kind that is not known.
        ModelFilesError: Its files are damaged or contradict each other.
    """
    with library_faults(lambda words: ModelFilesError(f"the tokenizer cannot be used: {words}")):
        match files.tokenizer_files():
            case HfTokenizerFiles() as hf:
                return _load_hf(hf)
            case GgufTokenizer() as gguf:
                return _load_gguf(gguf)
            case None:
                return None


def _load_hf(files: HfTokenizerFiles) -> Tokenizer:
    name = files.tokenizer_json.name
    text = read_text(files.tokenizer_json, name)
    try:
        backend = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises no narrower class
        json_object(text, name)  # says more of what is no JSON
        raise ModelFilesError(f"{name}: {error}") from error
    declared = declared_tokens(files)
    add_declared_tokens(backend, declared)
    special_tokens = declared.contents
    return Tokenizer(
        backend,
        eos_token_ids=_end_token_ids(backend, special_tokens, files.chat_template),
        chat_template=_chat_template(files.chat_template, special_tokens),
    )


def _end_token_ids(
    backend: tokenizers.Tokenizer, special_tokens: Mapping[str, str], template: str | None
) -> set[int]:
    """The end that the files name, and those that the template writes after a turn.

    A base model may name only the end of a text, although its template ends turns otherwise.
    """
    special = {
        token.content
        for token in backend.get_added_tokens_decoder().values()
        if token.special and token.content in (template or "")
    }
    names = {special_tokens.get("eos_token", ""), *end_tokens(special, special)}
    ids = {backend.token_to_id(name) for name in names}
    return {token_id for token_id in ids if token_id is not None}


def _load_gguf(files: GgufTokenizer) -> Tokenizer | None:
    if files.metadata.get("tokenizer.ggml.model") in _NO_TOKENIZER:
        return None
    vocabulary = GgufVocabulary.parse(files.metadata)
    source = files.metadata.get("tokenizer.chat_template")
    backend = build_gguf_tokenizer(vocabulary)
    return Tokenizer(
        backend,
        aliases={
            token_id: token
            for token_id, token in enumerate(vocabulary.tokens)
            if backend.token_to_id(token) != token_id
        },
        eos_token_ids=vocabulary.end_token_ids,
        chat_template=_chat_template(
            source if isinstance(source, str) else None, vocabulary.special_tokens
        ),
    )


def _chat_template(source: str | None, special_tokens: Mapping[str, str]) -> ChatTemplate | None:
    return None if source is None else ChatTemplate(source, special_tokens)
