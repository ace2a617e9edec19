"""The tokens of one request whose logits change: bias, penalties, and ends that come too early."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Self

import numpy as np
import numpy.typing as npt

from coordinator.core.sampling_params import SamplingParams
from coordinator.sampling.parameters import FloatArray, Occurrences, changes_of

_INITIAL_CAPACITY = 64


class ChangedTokens:
    """Counts of a growing sequence; a token costs the same however long the sequence is.

    First stand the biased tokens, then those of the prompt by rising id, then others in the order
    of their first occurrence; so an index never changes.
    """

    def __init__(self, params: SamplingParams) -> None:
        self._changes = changes_of(params)
        scopes = [change.scope for change in self._changes]
        self._counts_prompt = any(scope.prompt for scope in scopes)
        self._counts_output = any(scope.output for scope in scopes)
        self._size = 0
        self._indices: dict[int, int] = {}
        """Index of each token but those of the prompt, which are found by bisection."""
        self._prompt_start = 0
        self._prompt_ids = np.empty(0, dtype=np.int64)
        """Rising; without those that are biased or barred."""
        self._ids = np.empty(_INITIAL_CAPACITY, dtype=np.int64)
        self._named: tuple[int, ...] = ()
        """The ids as a request names them, of the tokens that there were when it was made."""
        self._bias = np.zeros(_INITIAL_CAPACITY)
        self._seen = np.zeros(_INITIAL_CAPACITY, dtype=np.bool_)
        self._output_counts = np.zeros(_INITIAL_CAPACITY, dtype=np.int64)
        self._barred = np.empty(0, dtype=np.int64)
        """Indices of tokens that are impossible."""
        for scope in scopes:
            for token_id, bias in scope.bias.items():
                index = self._index(token_id)
                self._bias[index] += bias

    @classmethod
    def of(
        cls,
        params: SamplingParams,
        prompt_token_ids: Sequence[int],
        barred_ids: Iterable[int] = (),
    ) -> Self | None:
        """Returns the tokens to change of a request that has no output yet.

        Args:
            params: Sampling parameters of the request.
            prompt_token_ids: Prompt of the request.
            barred_ids: Tokens that are impossible until `unbar`.

        Returns:
            None when the parameters never change a logit, so that nothing is counted in vain.
        """
        tokens = cls(params)
        tokens._barred = np.array([tokens._index(one) for one in barred_ids], dtype=np.int64)
        if not (tokens._changes or len(tokens._barred)):
            return None
        if tokens._counts_prompt:
            tokens._see(prompt_token_ids)
        return tokens

    def __len__(self) -> int:
        """Number of tokens whose logits may change."""
        return self._size

    @property
    def ids(self) -> npt.NDArray[np.int64]:
        """Their ids, `[len(self)]`."""
        return self._ids[: len(self)]

    @property
    def named(self) -> tuple[int, ...]:
        """Their ids as a request names them; made anew only when there are more."""
        if len(self._named) != len(self):
            self._named = tuple(self.ids.tolist())
        return self._named

    def named_after(self, token_ids: Iterable[int]) -> Iterator[tuple[int, ...]]:
        """Yields what `named` will be after each of these tokens, were they output."""
        named = self.named
        fresh: set[int] = set()
        for token_id in token_ids:
            if self._counts_output and token_id not in fresh and not self._knows(token_id):
                fresh.add(token_id)
                named = (*named, token_id)
            yield named

    @property
    def outlasts_bar(self) -> bool:
        """True when logits change after `unbar` too."""
        return bool(self._changes)

    def append(self, token_id: int) -> None:
        """Counts one more token of output."""
        if self._counts_output:
            index = self._index(token_id)
            self._seen[index] = True
            self._output_counts[index] += 1

    def change(self, logits: FloatArray) -> FloatArray:
        """Returns the changed logits of `ids`, given their logits as the model made them."""
        size = len(self)
        tokens = Occurrences(self._bias[:size], self._seen[:size], self._output_counts[:size])
        for change in self._changes:
            logits = change.change(logits, tokens)
        if len(self._barred):
            logits = logits.copy()
            logits[self._barred] = -np.inf
        return logits

    def unbar(self) -> Self | None:
        """Makes all tokens possible again.

        Returns:
            Itself; None when no logit changes any more.
        """
        self._barred = self._barred[:0]
        return self if self._changes else None

    def bars_all(self, token_ids: npt.NDArray[np.int64]) -> bool:
        """True when each of these tokens is impossible."""
        return bool(len(self._barred) and np.isin(token_ids, self.ids[self._barred]).all())

    def _see(self, token_ids: Sequence[int]) -> None:
        """Counts a prompt; as if its tokens came one by one, in a fraction of the time."""
        start = self._size  # all that are known have a bias, or are barred
        ids = np.asarray(token_ids, dtype=np.int64)
        occurs = np.zeros(1 + max(ids.max(initial=0), self.ids.max(initial=0)), dtype=np.bool_)
        occurs[ids] = True  # a hundred times faster than `np.unique`
        self._seen[:start] = occurs[self.ids]
        occurs[self.ids] = False
        self._prompt_start = start
        self._prompt_ids = np.flatnonzero(occurs)
        self._size = start + len(self._prompt_ids)
        while len(self._ids) < self._size:
            self._double_capacity()
        self._ids[start : self._size] = self._prompt_ids
        self._seen[start : self._size] = True

    def _knows(self, token_id: int) -> bool:
        return token_id in self._indices or self._index_in_prompt(token_id) is not None

    def _index_in_prompt(self, token_id: int) -> int | None:
        place = int(self._prompt_ids.searchsorted(token_id))
        if place < len(self._prompt_ids) and self._prompt_ids[place] == token_id:
            return self._prompt_start + place
        return None

    def _index(self, token_id: int) -> int:
        """Finds or adds a token; adding may replace the arrays."""
        index = self._indices.get(token_id)
        if index is None:
            index = self._index_in_prompt(token_id)
        if index is not None:
            return index
        index = self._indices[token_id] = self._size
        if index == len(self._ids):
            self._double_capacity()
        self._ids[index] = token_id
        self._size += 1
        return index

    def _double_capacity(self) -> None:
        self._ids = np.concatenate([self._ids, np.empty_like(self._ids)])
        self._bias = np.concatenate([self._bias, np.zeros_like(self._bias)])
        self._seen = np.concatenate([self._seen, np.zeros_like(self._seen)])
        self._output_counts = np.concatenate(
            [self._output_counts, np.zeros_like(self._output_counts)]
        )
