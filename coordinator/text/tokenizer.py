"""The tokenizer of a model: text and conversations to token ids, token ids to text."""

import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import cached_property
from types import MappingProxyType
from typing import Self

import tokenizers

from coordinator.core.request_spec import ChatPrompt, TextPrompt
from coordinator.dialogue.dialect import Dialect
from coordinator.text.chat_strings import with_strings
from coordinator.text.chat_template import ChatTemplate
from coordinator.text.control_tokens import ShieldedText
from coordinator.text.detokenizer import IncrementalDetokenizer
from coordinator.text.guarded_encoder import GuardedEncoder
from coordinator.text.library_faults import library_faults
from coordinator.text.token_decoders import choose_decoder
from stagecoach.contract.errors import InvalidArgumentError


class Tokenizer:
    """The tokenizer of one model. Thread-safe."""

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        eos_token_ids: Collection[int] = (),
        chat_template: ChatTemplate | None = None,
        aliases: Mapping[int, str] = MappingProxyType({}),
    ) -> None:
        """Takes over a tokenizer.

        Args:
            backend: Owned by this object from now on.
            eos_token_ids: Tokens that end a text or a turn, as far as the tokenizer's files say.
            chat_template: None for a model that does not converse.
            aliases: Tokens that no text becomes, by id: those that spell the same as another one,
                of which the backend knows only one.

        Raises:
            UnsupportedModelError: Its tokens spell text in a way that is not known.
        """
        # A file may keep the settings of some training run.
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._aliases = dict(aliases)
        self._chat_template = chat_template
        self._make_decoder = choose_decoder(backend)
        self._special_tokens = frozenset(
            token.content for token in backend.get_added_tokens_decoder().values() if token.special
        )
        self._before, self._after = _surroundings(backend)
        self.eos_token_ids = frozenset(eos_token_ids)

    def to_state(self) -> bytes:
        """Returns all that makes this tokenizer, for `from_state` in another process."""
        template = self._chat_template
        state = {
            "tokenizer": self.serialized(),
            "eos_token_ids": sorted(self.eos_token_ids),
            "template": template and [template.source, template.special_tokens],
            "aliases": sorted(self._aliases.items()),
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
            aliases=dict(facts["aliases"]),
        )

    @cached_property
    def vocab_size(self) -> int:
        """One more than the highest id; the model may have more logits, and some ids no token."""
        return 1 + max((*self._backend.get_vocab().values(), *self._aliases), default=-1)

    def encode_prompt(self, prompt: TextPrompt | ChatPrompt) -> list[int]:
        """Returns the tokens of a prompt.

        Raises:
            InvalidArgumentError: As `encode` and `encode_chat`.
        """
        if isinstance(prompt, TextPrompt):
            return self.encode(prompt.text, add_special_tokens=prompt.add_special_tokens)
        return self.encode_chat(prompt)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Returns the tokens of a text.

        Args:
            text: Special tokens in it are read as such.
            add_special_tokens: Put those around it that the model wants there. A begin token that
                the text begins with itself is not repeated.

        Raises:
            InvalidArgumentError: The text is not valid Unicode, or has something that the tokenizer
                has no token for.
        """
        _check_unicode(text, "prompt.text")
        with library_faults(_not_encoded("prompt.text")):
            token_ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        return self._surrounded(token_ids) if add_special_tokens else token_ids

    def encode_chat(self, prompt: ChatPrompt) -> list[int]:
        """Returns the tokens of a conversation.

        The template writes all special tokens itself. What it wrote is control; the same strings
        inside a message are text.

        Raises:
            InvalidArgumentError: The model has no chat template, the template refuses the
                messages or leaves out one that is to be continued, or a message is not valid
                Unicode or has something that the tokenizer has no token for.
        """
        if self._chat_template is None:
            raise InvalidArgumentError(
                "prompt.chat: the model has no chat template: send text",
                field="prompt.chat",
            )
        with_strings(prompt, _checked_unicode)
        encoder = self._chat_encoder
        control_tokens = encoder.control_tokens
        shielded = ShieldedText(control_tokens)
        text = self._rendered(_shielded(prompt, shielded))
        strict = ShieldedText(control_tokens, kept=self._sought)
        strictly = _shielded(prompt, strict)
        if strict.num_parts > shielded.num_parts:
            # What the template does with a message may have made a control token of its pieces.
            strict_text = self._rendered(strictly)
            if control_tokens.found_in(strict_text) != control_tokens.found_in(text):
                text, shielded = strict_text, strict
        with library_faults(_not_encoded("prompt.chat.messages")):
            token_ids = encoder.encode(text, shielded)
        return self._surrounded(token_ids) if prompt.add_special_tokens else token_ids

    def _rendered(self, prompt: ChatPrompt) -> str:
        assert self._chat_template is not None, "checked before"
        arguments = json.loads(prompt.template_arguments)
        tools = prompt.tools
        if prompt.continue_final_message:
            return self._chat_template.render_unfinished(
                prompt.messages, tools=tools, arguments=arguments
            )
        return self._chat_template.render(
            prompt.messages,
            tools=tools,
            arguments=arguments,
            add_generation_prompt=prompt.add_generation_prompt,
        )

    def detokenize(self, token_ids: Iterable[int]) -> str:
        """Returns the text of tokens, special ones left out; what is incomplete becomes U+FFFD."""
        detokenizer = self.detokenizer()
        return detokenizer.push(token_ids) + detokenizer.flush()

    def token_bytes(self, token_id: int) -> bytes:
        """Returns what one token stands for inside a text, which may be part of a character.

        A special token stands for its name, such as `</s>`; an id that the tokenizer does not know
        for nothing.
        """
        token = self._token(token_id)
        return b"" if token is None else self._make_decoder().spell(token)

    @cached_property
    def dialect(self) -> Dialect:
        """How the model marks what it thinks and writes calls of tools."""
        template = self._chat_template
        dialect = Dialect() if template is None else template.dialect
        return dialect.bound(self._special_tokens)

    @property
    def template_variables(self) -> frozenset[str]:
        """What the chat template makes something of, by name, if it is given."""
        return frozenset() if self._chat_template is None else self._chat_template.variables

    @cached_property
    def added_token_ids(self) -> Mapping[str, int]:
        """Ids of special tokens, and of others that were added to the vocabulary."""
        added_tokens = self._backend.get_added_tokens_decoder()
        return {token.content: token_id for token_id, token in added_tokens.items()}

    def serialized(self) -> str:
        """Returns the tokenizer as the text of a `tokenizer.json`."""
        return self._backend.to_str()

    def detokenizer(self) -> IncrementalDetokenizer:
        """Returns a detokenizer for one new sequence."""
        return IncrementalDetokenizer(self._token, self._special_tokens, self._make_decoder())

    def _token(self, token_id: int) -> str | None:
        alias = self._aliases.get(token_id)
        if alias is not None:
            return alias
        token: str | None = self._backend.id_to_token(token_id)
        return token

    @cached_property
    def _chat_encoder(self) -> GuardedEncoder:
        """Made for the first conversation: it takes a run of the template, which may never end."""
        assert self._chat_template is not None, "checked before"
        added_tokens = self._backend.get_added_tokens_decoder().values()
        return GuardedEncoder(self._backend, _control_tokens(added_tokens, self._chat_template))

    @cached_property
    def _sought(self) -> re.Pattern[str]:
        """Finds what the template looks for in messages and what begins no control token."""
        assert self._chat_template is not None, "checked before"
        control_tokens = self._chat_encoder.control_tokens
        texts = [
            re.escape(text)
            for text in sorted(self._chat_template.sought, key=len, reverse=True)
            if text and control_tokens.find_open_end(text) is None
        ]
        return re.compile("|".join(texts) or "(?!)")

    def _surrounded(self, token_ids: list[int]) -> list[int]:
        """The ids with what the model wants around a text, but no begin token twice."""
        before = self._before
        if before and token_ids[: len(before)] == before:
            before = []
        return [*before, *token_ids, *self._after]


def _check_unicode(text: str, field: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidArgumentError(
            f"{field} has a lone surrogate at character {error.start}", field=field
        ) from error


def _checked_unicode(text: str, field: str) -> str:
    _check_unicode(text, field)
    return text


def _shielded(prompt: ChatPrompt, shielded: ShieldedText) -> ChatPrompt:
    return with_strings(prompt, lambda text, _: shielded.shield(text))


def _not_encoded(field: str) -> Callable[[str], InvalidArgumentError]:
    return lambda words: InvalidArgumentError(f"{field} cannot be tokenized: {words}", field=field)


def _surroundings(backend: tokenizers.Tokenizer) -> tuple[list[int], list[int]]:
    """What the tokenizer puts before and after every text."""
    whole = backend.encode("a")
    is_text = [not is_special for is_special in whole.special_tokens_mask]
    if True not in is_text:
        return whole.ids, []
    start = is_text.index(True)
    end = len(is_text) - is_text[::-1].index(True)
    return whole.ids[:start], whole.ids[end:]


def _control_tokens(
    added_tokens: Iterable[tokenizers.AddedToken], template: ChatTemplate
) -> list[tokenizers.AddedToken]:
    """Special tokens, and whatever else the template marks turns with.

    Other added tokens, such as `<think>`, are read as such also where a client wrote them.
    """
    marks = template.turn_marks()
    return [
        token
        for token in added_tokens
        if token.special or (token.content in marks and not token.content.isspace())
    ]
