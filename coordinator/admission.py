"""From what a client sent to a valid request: tokenization and the limits of the model."""

import secrets
import time
from collections.abc import Collection, Iterable

from coordinator.core.request import Request
from coordinator.core.request_spec import ChatPrompt, RequestSpec, TextPrompt, TokenPrompt
from coordinator.text.tokenizer import Tokenizer
from protos.errors import ContextLengthExceededError, InvalidArgumentError

MAX_CHARS_PER_TOKEN = 32
"""Text with more characters for each token that a request may hold is refused unread; the mean is
about 4, and a tokenizer would hold up everyone for the time that it takes."""


class Admission:
    """Validates requests for one model.

    Args:
        tokenizer: The model's; None when it serves token ids only.
        vocab_size: Number of token ids.
        eos_token_ids: Ids that end the output unless a request ignores them.
        max_request_tokens: Tokens of prompt and output together that one request may hold.
    """

    def __init__(
        self,
        *,
        tokenizer: Tokenizer | None,
        vocab_size: int,
        eos_token_ids: frozenset[int],
        max_request_tokens: int,
    ) -> None:
        """Keeps the limits."""
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos_token_ids = eos_token_ids
        self._max_request_tokens = max_request_tokens

    def tokenize(self, prompt: TextPrompt | TokenPrompt | ChatPrompt) -> list[int]:
        """Turns a prompt into token ids.

        Raises:
            InvalidArgumentError: The prompt is empty, has ids outside the vocabulary, or is text
                while the model has no tokenizer.
            ContextLengthExceededError: There are more ids than a request may hold, or the text is
                far too long to be worth tokenizing.
        """
        if isinstance(prompt, TokenPrompt):
            if len(prompt.token_ids) > self._max_request_tokens:
                raise self._too_long(len(prompt.token_ids))
            token_ids = list(prompt.token_ids)
            self._check_ids("prompt.token_ids", token_ids)
            return token_ids
        if self._tokenizer is None:
            raise InvalidArgumentError("the model has no tokenizer: send token ids", field="prompt")
        if isinstance(prompt, TextPrompt):
            self._check_size(len(prompt.text))
            token_ids = self._tokenizer.encode(prompt.text)
        else:
            self._check_size(sum(len(message.content) for message in prompt.messages))
            token_ids = self._tokenizer.encode_chat(prompt.messages)
        if not token_ids:
            raise InvalidArgumentError("the prompt is empty", field="prompt")
        # A tokenizer may know added tokens that the model has no embedding for.
        self._check_ids("prompt", token_ids)
        return token_ids

    def detokenize(self, token_ids: Collection[int]) -> str:
        """Turns token ids into text, special tokens left out.

        Raises:
            InvalidArgumentError: An id is outside the vocabulary, or the model has no tokenizer.
            ContextLengthExceededError: There are more than one request may hold.
        """
        if self._tokenizer is None:
            raise InvalidArgumentError("the model has no tokenizer", field="tokens")
        if len(token_ids) > self._max_request_tokens:
            raise ContextLengthExceededError(
                f"{len(token_ids)} tokens given, one request may hold {self._max_request_tokens}",
                num_tokens=len(token_ids),
                limit=self._max_request_tokens,
            )
        self._check_ids("tokens", token_ids)
        return self._tokenizer.detokenize(token_ids)

    def admit(self, spec: RequestSpec) -> Request:
        """Makes the request that `spec` asks for; more tokens than fit become as many as fit.

        Raises:
            InvalidArgumentError: As `tokenize`; or ids of other fields are outside the vocabulary,
                or stop strings are given to a model without a tokenizer.
            ContextLengthExceededError: The prompt leaves no room for one token.
        """
        if spec.stop and self._tokenizer is None:
            raise InvalidArgumentError("the model has no tokenizer: no stop strings", field="stop")
        self._check_ids("stop_token_ids", spec.stop_token_ids)
        self._check_ids("sampling.logit_bias", spec.sampling.logit_bias)
        token_ids = self.tokenize(spec.prompt)
        room = self._max_request_tokens - len(token_ids)
        if room < 1:
            raise self._too_long(len(token_ids))
        stop_token_ids = frozenset(spec.stop_token_ids)
        return Request(
            request_id=spec.request_id or f"req-{secrets.token_hex(8)}",
            prompt_token_ids=tuple(token_ids),
            max_tokens=min(spec.max_tokens or room, room),
            sampling=spec.sampling.with_seed(secrets.randbits(64)),
            stop=tuple(spec.stop),
            stop_token_ids=stop_token_ids
            if spec.ignore_eos
            else stop_token_ids | self._eos_token_ids,
            cache_salt=spec.cache_salt,
            logprobs=spec.logprobs,
            arrival_ns=time.monotonic_ns(),
        )

    def _too_long(self, num_tokens: int) -> ContextLengthExceededError:
        return ContextLengthExceededError(
            f"the prompt has {num_tokens} tokens, prompt and output together may have"
            f" {self._max_request_tokens}",
            num_prompt_tokens=num_tokens,
            limit=self._max_request_tokens,
        )

    def _check_size(self, num_chars: int) -> None:
        limit = self._max_request_tokens * MAX_CHARS_PER_TOKEN
        if num_chars > limit:
            raise ContextLengthExceededError(
                f"the prompt has {num_chars} characters, {self._max_request_tokens} tokens hold at"
                f" most about {limit}",
                num_chars=num_chars,
                limit=limit,
            )

    def _check_ids(self, field: str, token_ids: Iterable[int]) -> None:
        for token_id in token_ids:
            if not 0 <= token_id < self._vocab_size:
                raise InvalidArgumentError(
                    f"{field}: token id {token_id} is outside [0, {self._vocab_size})",
                    field=field,
                )
