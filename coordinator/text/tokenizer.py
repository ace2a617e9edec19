"""The tokenizer of a model: text and conversations to token ids, token ids to text."""

import json
from collections.abc import Collection, Iterable, Mapping
from typing import Self

import tokenizers

from coordinator.core.request_spec import ChatMessage, ChatPrompt, TextPrompt
from coordinator.text.chat_template import ChatTemplate
from coordinator.text.detokenizer import IncrementalDetokenizer
from coordinator.text.gguf_tokenizer import build_gguf_tokenizer
from coordinator.text.gguf_vocabulary import GgufVocabulary
from coordinator.text.token_decoders import choose_decoder
from model_files import GgufTokenizer, HfTokenizerFiles, ModelFiles
from protos.errors import InvalidArgumentError, ModelFilesError


class Tokenizer:
    """The tokenizer of one model. Thread-safe."""

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        eos_token_ids: Collection[int] = (),
        chat_template: ChatTemplate | None = None,
    ) -> None:
        """Takes over a tokenizer.

        Args:
            backend: Owned by this object from now on.
            eos_token_ids: Tokens that end a text or a turn, as far as the tokenizer's files say.
            chat_template: None for a model that does not converse.

        Raises:
            UnsupportedModelError: Its tokens spell text in a way that is not known.
        """
        # A file may keep the settings of some training run.
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._chat_template = chat_template
        self._make_decoder = choose_decoder(backend)
        self._special_tokens = frozenset(
            token.content for token in backend.get_added_tokens_decoder().values() if token.special
        )
        self.eos_token_ids = frozenset(eos_token_ids)

    def to_state(self) -> bytes:
        """Returns all that makes this tokenizer, for `from_state` in another process."""
        template = self._chat_template
        state = {
            "tokenizer": self.serialized(),
            "eos_token_ids": sorted(self.eos_token_ids),
            "template": template and [template.source, template.special_tokens],
        }
        return json.dumps(state).encode()

    @classmethod
    def from_state(cls, state: bytes) -> Self:
        """Makes the tokenizer that `to_state` wrote."""
        facts = json.loads(state)
        return cls(
            tokenizers.Tokenizer.from_str(facts["tokenizer"]),
            eos_token_ids=facts["eos_token_ids"],
            chat_template=facts["template"] and ChatTemplate(*facts["template"]),
        )

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included; the model may have more logits."""
        return self._backend.get_vocab_size()

    def encode_prompt(self, prompt: TextPrompt | ChatPrompt) -> list[int]:
        """Returns the tokens of a prompt.

        Raises:
            InvalidArgumentError: As `encode` and `encode_chat`.
        """
        if isinstance(prompt, TextPrompt):
            return self.encode(prompt.text)
        return self.encode_chat(prompt.messages)

    def encode(self, text: str) -> list[int]:
        """Returns the tokens of a text, with those that the model wants around it.

        Raises:
            InvalidArgumentError: The text is not valid Unicode.
        """
        return self._encode(text, add_special_tokens=True, field="prompt.text")

    def encode_chat(self, messages: Iterable[ChatMessage]) -> list[int]:
        """Returns the prompt that asks for the next message of a conversation.

        The template writes all special tokens itself.

        Raises:
            InvalidArgumentError: The model has no chat template, the template refuses the
                messages, or a message is not valid Unicode.
        """
        if self._chat_template is None:
            raise InvalidArgumentError(
                "the model has no chat template: send text", field="prompt.chat"
            )
        text = self._chat_template.render(messages)
        return self._encode(text, add_special_tokens=False, field="prompt.chat.messages.content")

    def detokenize(self, token_ids: Iterable[int]) -> str:
        """Returns the text of tokens, special ones left out; what is incomplete becomes U+FFFD."""
        detokenizer = self.detokenizer()
        return detokenizer.push(token_ids) + detokenizer.flush()

    def token_bytes(self, token_id: int) -> bytes:
        """Returns what one token stands for inside a text, which may be part of a character.

        A special token stands for its name, such as `</s>`; an id that the tokenizer does not know
        for nothing.
        """
        token = self._backend.id_to_token(token_id)
        return b"" if token is None else self._make_decoder().spell(token)

    def serialized(self) -> str:
        """Returns the tokenizer as the text of a `tokenizer.json`."""
        return self._backend.to_str()

    def detokenizer(self) -> IncrementalDetokenizer:
        """Returns a detokenizer for one new sequence."""
        return IncrementalDetokenizer(
            self._backend.id_to_token, self._special_tokens, self._make_decoder()
        )

    def _encode(self, text: str, *, add_special_tokens: bool, field: str) -> list[int]:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidArgumentError(
                f"{field} has a lone surrogate at character {error.start}", field=field
            ) from error
        return self._backend.encode(text, add_special_tokens=add_special_tokens).ids


def load_tokenizer(files: ModelFiles) -> Tokenizer | None:
    """Loads the tokenizer of a model.

    Returns:
        None for a model without one, which takes and gives token ids only.

    Raises:
        UnsupportedModelError: The tokenizer is of a kind that is not known.
        ModelFilesError: Its files are damaged or contradict each other.
    """
    match files.tokenizer_files():
        case HfTokenizerFiles() as hf:
            return _load_hf(hf)
        case GgufTokenizer() as gguf:
            return _load_gguf(gguf)
        case None:
            return None


def _load_hf(files: HfTokenizerFiles) -> Tokenizer:
    try:
        backend = tokenizers.Tokenizer.from_file(str(files.tokenizer_json))
    except Exception as error:  # the library raises no narrower class
        raise ModelFilesError(f"{files.tokenizer_json.name}: {error}") from error
    special_tokens = _special_tokens(files.tokenizer_config)
    eos_token_id = backend.token_to_id(special_tokens.get("eos_token", ""))
    return Tokenizer(
        backend,
        eos_token_ids=() if eos_token_id is None else (eos_token_id,),
        chat_template=_chat_template(files.chat_template, special_tokens),
    )


def _load_gguf(files: GgufTokenizer) -> Tokenizer:
    vocabulary = GgufVocabulary.parse(files.metadata)
    source = files.metadata.get("tokenizer.chat_template")
    return Tokenizer(
        build_gguf_tokenizer(vocabulary),
        eos_token_ids=vocabulary.end_token_ids,
        chat_template=_chat_template(
            source if isinstance(source, str) else None, vocabulary.special_tokens
        ),
    )


def _chat_template(source: str | None, special_tokens: Mapping[str, str]) -> ChatTemplate | None:
    return None if source is None else ChatTemplate(source, special_tokens)


def _special_tokens(config: Mapping[str, object]) -> dict[str, str]:
    """Reads `bos_token` and the like, which are strings or serialized `AddedToken`s."""
    tokens = {}
    for name, value in config.items():
        content = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(content, str):
            tokens[name] = content
    return tokens
