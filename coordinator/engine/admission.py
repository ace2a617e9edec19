"""From what a client sent to a valid request: tokenization and the limits of the model."""

import secrets
from array import array
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from coordinator.core.embedding import EmbeddingParams
from coordinator.core.request import Request
from coordinator.core.request_spec import (
    ChatPrompt,
    EncodedPrompt,
    Prompt,
    RequestSpec,
    TextPrompt,
    TokenPrompt,
)
from stagecoach.contract.errors import ContextLengthExceededError, InvalidArgumentError

MAX_CHARS_PER_TOKEN = 32
"""Text with more characters for each token that a request may hold is refused unread; the mean is
about 4."""


class Text(Protocol):
    """Turns text into token ids and back. Implemented by `coordinator.text`."""

    async def encode(self, prompt: TextPrompt | ChatPrompt) -> "array[int]":
        """Token ids of any prompt.

        Raises:
            StagecoachError: It cannot be encoded, or takes too long.
        """
        ...

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        """The text of token ids, special tokens left out.

        Raises:
            StagecoachError: It takes too long.
        """
        ...


class Admission:
    """Validates requests for one model.

    Args:
        text: Workers of the model's tokenizer; None when it serves token ids only.
        vocab_size: Number of token ids.
        eos_token_ids: Ids that end the output unless a request ignores them.
        max_request_tokens: Tokens of prompt and output together that one request may hold.
        answers_prompt_logits: Whether the last stage tells how likely the tokens of a prompt are.
        answers_hidden_sums: Whether the last stage adds up hidden states.
        hidden_size: Width of a hidden state.
    """

    def __init__(
        self,
        *,
        text: Text | None,
        vocab_size: int,
        eos_token_ids: frozenset[int],
        max_request_tokens: int,
        answers_prompt_logits: bool,
        answers_hidden_sums: bool,
        hidden_size: int,
    ) -> None:
        self._text = text
        self._vocab_size = vocab_size
        self._eos_token_ids = eos_token_ids
        self._max_request_tokens = max_request_tokens
        self._answers_prompt_logits = answers_prompt_logits
        self._answers_hidden_sums = answers_hidden_sums
        self._hidden_size = hidden_size

    async def encode(self, prompt: Prompt) -> Sequence[int]:
        """Turns any prompt into token ids; takes no time for those and for short texts.

        Raises:
            InvalidArgumentError: The prompt is empty, has ids outside the vocabulary, or is text
                while the model has no tokenizer.
            ContextLengthExceededError: There are more ids than a request may hold, or the text is
                far too long to be worth tokenizing.
            DeadlineExceededError: It took too long.
            QueueFullError: Too many texts wait.
        """
        match prompt:
            case EncodedPrompt():
                return prompt.token_ids
            case TokenPrompt():
                if len(prompt.token_ids) > self._max_request_tokens:
                    raise self._too_long(len(prompt.token_ids))
                self._check_ids("prompt.token_ids", prompt.token_ids)
                return prompt.token_ids
            case TextPrompt() | ChatPrompt():
                token_ids = await self._encoded(prompt)
                if len(token_ids) > self._max_request_tokens:
                    raise self._too_long(len(token_ids))
                return token_ids

    async def tokenize(self, prompt: Prompt) -> Sequence[int]:
        """Turns a prompt into token ids; of a text, there may be more than a request may hold.

        Raises:
            StagecoachError: As `encode`.
        """
        if isinstance(prompt, TextPrompt | ChatPrompt):
            return await self._encoded(prompt)
        return await self.encode(prompt)

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        """Turns token ids into text, special tokens left out.

        Raises:
            InvalidArgumentError: An id is outside the vocabulary, or the model has no tokenizer.
            ContextLengthExceededError: There are more than one request may hold.
            DeadlineExceededError: It took too long.
            QueueFullError: Too many texts wait.
        """
        if self._text is None:
            raise InvalidArgumentError("tokens: the model has no tokenizer", field="tokens")
        if len(token_ids) > self._max_request_tokens:
            raise ContextLengthExceededError(
                f"{len(token_ids)} tokens given, one request may hold {self._max_request_tokens}",
                num_tokens=len(token_ids),
                limit=self._max_request_tokens,
            )
        self._check_ids("tokens", token_ids)
        return await self._text.detokenize(token_ids)

    def check(self, spec: RequestSpec) -> None:
        """Checks all but the prompt against the model.

        Raises:
            InvalidArgumentError: Ids are outside the vocabulary, or stop strings are given to a
                model without a tokenizer, or log-probabilities or the embedding of the prompt are
                wanted of a last stage that is too old, or more dimensions than the model has.
        """
        if spec.prompt_logprobs is not None and not self._answers_prompt_logits:
            raise InvalidArgumentError(
                "prompt_logprobs is set, but the last stage is of a version that does not tell the"
                " log-probabilities of a prompt: update it and start the coordinator again",
                field="prompt_logprobs",
            )
        if spec.embedding is not None:
            self._check_embedding(spec.embedding)
        if spec.stop and self._text is None:
            raise InvalidArgumentError("stop: the model has no tokenizer", field="stop")
        self._check_ids("stop_token_ids", spec.stop_token_ids)
        self._check_ids("sampling.logit_bias", tuple(spec.sampling.logit_bias))

    def _check_embedding(self, params: EmbeddingParams) -> None:
        if not self._answers_hidden_sums:
            raise InvalidArgumentError(
                "embeddings are not served: the last stage is of a version that does not tell"
                " hidden states: update it and start the coordinator again"
            )
        if params.dimensions is not None and params.dimensions > self._hidden_size:
            raise InvalidArgumentError(
                f"dimensions is {params.dimensions}, must be in [1, {self._hidden_size}]: the"
                f" model's hidden states have {self._hidden_size} elements",
                field="dimensions",
            )

    def admit(
        self, spec: RequestSpec, prompt_token_ids: Sequence[int], *, arrival_ns: int
    ) -> Request:
        """Makes the request that a checked `spec` asks for; more tokens than fit become what fits.

        Args:
            spec: Request as its client put it.
            prompt_token_ids: What `encode` made of its prompt.
            arrival_ns: When it came, on the clock of requests and lanes.

        Raises:
            ContextLengthExceededError: The prompt leaves no room for one token.
        """
        room = self._max_request_tokens - len(prompt_token_ids)
        if room < 1 and spec.max_tokens != 0:
            raise self._too_long(len(prompt_token_ids))
        stop_token_ids = frozenset(spec.stop_token_ids)
        return Request(
            request_id=spec.request_id or f"req-{secrets.token_hex(8)}",
            prompt_token_ids=prompt_token_ids,
            max_tokens=room if spec.max_tokens is None else min(spec.max_tokens, room),
            min_tokens=spec.min_tokens,
            sampling=spec.sampling.with_seed(secrets.randbits(64)),
            stop=tuple(spec.stop),
            stop_token_ids=stop_token_ids
            if spec.ignore_eos
            else stop_token_ids | self._eos_token_ids,
            cache_salt=spec.cache_salt,
            logprobs=spec.logprobs,
            prompt_logprobs=spec.prompt_logprobs,
            embedding=spec.embedding,
            arrival_ns=arrival_ns,
        )

    def _checked_text(self, num_chars: int) -> Text:
        """What encodes a prompt of so many characters."""
        if self._text is None:
            raise InvalidArgumentError(
                "prompt: the model has no tokenizer: send token ids", field="prompt"
            )
        limit = self._max_request_tokens * MAX_CHARS_PER_TOKEN
        if num_chars > limit:
            raise ContextLengthExceededError(
                f"the prompt has {num_chars} characters, {self._max_request_tokens} tokens hold at"
                f" most about {limit}",
                num_chars=num_chars,
                limit=limit,
            )
        return self._text

    async def _encoded(self, prompt: TextPrompt | ChatPrompt) -> "array[int]":
        size = len(prompt.text) if isinstance(prompt, TextPrompt) else prompt.num_chars
        return self._checked(await self._checked_text(size).encode(prompt))

    def _checked(self, token_ids: "array[int]") -> "array[int]":
        """What a tokenizer made of a prompt."""
        if not token_ids:
            raise InvalidArgumentError("prompt has no tokens", field="prompt")
        # A tokenizer may know added tokens that the model has no embedding for.
        self._check_ids("prompt", token_ids)
        return token_ids

    def _too_long(self, num_tokens: int) -> ContextLengthExceededError:
        return ContextLengthExceededError(
            f"the prompt has {num_tokens} tokens, prompt and output together may have"
            f" {self._max_request_tokens}",
            num_prompt_tokens=num_tokens,
            limit=self._max_request_tokens,
        )

    def _check_ids(self, field: str, token_ids: Sequence[int]) -> None:
        if not token_ids:
            return
        # Of a client's making, and long: looked at one by one only to say which is wrong.
        if isinstance(token_ids, array):
            ids = np.asarray(token_ids)
            lowest, highest = int(ids.min()), int(ids.max())
        else:
            lowest, highest = min(token_ids), max(token_ids)
        if lowest >= 0 and highest < self._vocab_size:
            return
        wrong = next(one for one in token_ids if not 0 <= one < self._vocab_size)
        raise InvalidArgumentError(
            f"{field}: token id {wrong} is outside [0, {self._vocab_size})", field=field
        )
