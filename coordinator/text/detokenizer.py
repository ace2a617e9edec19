"""Turns tokens into text as they come, without ever splitting a character."""

from collections.abc import Callable, Iterable

from coordinator.text.token_decoders import TokenDecoder


class IncrementalDetokenizer:
    """The text of one sequence; constant time a token. Not thread-safe.

    All that is pushed and flushed, put together, is what `tokenizers.Tokenizer.decode` makes of the
    tokens at once with special tokens skipped, for any tokens at all.
    """

    def __init__(
        self,
        id_to_token: Callable[[int], str | None],
        special_tokens: frozenset[str],
        decoder: TokenDecoder,
    ) -> None:
        """Starts with no token.

        Args:
            id_to_token: Returns None for ids that the tokenizer does not know; they have no text.
            special_tokens: They have no text either.
            decoder: Fresh, for this sequence alone.
        """
        self._id_to_token = id_to_token
        self._special_tokens = special_tokens
        self._decoder = decoder

    def push(self, token_ids: Iterable[int]) -> str:
        """Adds tokens; returns new text, which is empty while a character is incomplete."""
        text = ""
        for token_id in token_ids:
            token = self._id_to_token(token_id)
            if token is not None and token not in self._special_tokens:
                text += self._decoder.push(token)
        return text

    def hidden_text(self, token_id: int) -> str:
        """Returns what a special token spells, such as `</s>`; empty for any other token."""
        token = self._id_to_token(token_id)
        return token if token is not None and token in self._special_tokens else ""

    def flush(self) -> str:
        """Returns the text that was held back, when no more tokens follow."""
        return self._decoder.flush()
