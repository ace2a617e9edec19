"""Tokens ranked by falling logit, equal logits by rising id, from a reduced or a full row."""

from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt

from coordinator.core.step import LogitsRow
from coordinator.sampling.changed_tokens import ChangedTokens
from coordinator.sampling.parameters import FloatArray


class Ranked(NamedTuple):
    """The highest tokens, in rank order."""

    ids: npt.NDArray[np.int64]
    """`[num_tokens]`."""
    logits: FloatArray
    """`[num_tokens]`, bias and penalties applied."""


class Ranking:
    """Ranks one row after bias and penalties, no further than it is asked to.

    A rank holds the same token and logit, to the bit, whichever way the row was reduced.
    """

    def __init__(self, row: LogitsRow, changed: ChangedTokens | None) -> None:
        """Applies the changes.

        Args:
            row: As the last stage sent it.
            changed: Tokens whose logits change; a reduced row names exactly these.
        """
        self.full: FloatArray | None = None
        """All logits `[vocab_size]`, bias and penalties applied; None when the row is reduced."""
        if row.full is not None:
            self.full = _changed(np.array(row.full, dtype=np.float64), changed)
            self.size = len(self.full)
            """How many ranks are known."""
        else:
            self._reduced = _rank_reduced(row, changed)
            self.size = len(self._reduced.ids)

    @classmethod
    def of_allowed(
        cls,
        row: LogitsRow,
        changed: ChangedTokens | None,
        *,
        allowed_ids: npt.NDArray[np.int64],
        vocab_size: int,
    ) -> Self:
        """Ranks some tokens alone: to all others it gives a logit of minus infinity.

        Args:
            row: As the last stage sent it.
            changed: Tokens whose logits change.
            allowed_ids: Tokens to rank, at least one; a reduced row names exactly these.
            vocab_size: Logits in a row.
        """
        ranking = cls.__new__(cls)
        full = np.full(vocab_size, -np.inf)
        full[allowed_ids] = (
            row.token_logits if row.full is None else np.asarray(row.full)[allowed_ids]
        )
        ranking.full = _changed(full, changed)
        ranking.size = len(allowed_ids)
        return ranking

    @classmethod
    def of_allowed_best(
        cls, row: LogitsRow, *, allowed_ids: npt.NDArray[np.int64], are_contenders: bool
    ) -> Self:
        """Ranks those of the candidates or contenders of a reduced row that are allowed.

        Args:
            row: As the last stage sent it, with more of them than tokens that are not allowed.
            allowed_ids: Rising.
            are_contenders: Whether a token is drawn, from contenders, which are in no order.
        """
        ranking = cls.__new__(cls)
        ranking.full = None
        found = row.contender_ids if are_contenders else row.candidate_ids
        values = row.contender_logits if are_contenders else row.candidate_logits
        ids = np.asarray(found, dtype=np.int64)
        logits = np.asarray(values, dtype=np.float64)
        places = np.minimum(allowed_ids.searchsorted(ids), len(allowed_ids) - 1)
        is_allowed = allowed_ids[places] == ids
        ranking._reduced = Ranked(ids[is_allowed], logits[is_allowed])
        ranking.size = len(ranking._reduced.ids)
        return ranking

    @classmethod
    def of_contenders(cls, row: LogitsRow, changed: ChangedTokens | None) -> Self:
        """Ranks those that a draw may fall on: contenders of a reduced row and changed tokens.

        Args:
            row: As the last stage sent it, with as many more contenders as tokens are named.
            changed: Tokens whose logits change; the row names exactly these.
        """
        ranking = cls.__new__(cls)
        ranking.full = None
        ids = np.asarray(row.contender_ids, dtype=np.int64)
        logits = np.asarray(row.contender_logits, dtype=np.float64)
        if changed is not None:
            ids, logits = _with_changed(Ranked(ids, logits), changed, row)
        ranking._reduced = Ranked(ids, logits)
        ranking.size = len(ids)
        return ranking

    def known(self) -> Ranked:
        """Returns all tokens that may be chosen, in no order."""
        if self.full is None:
            return self._reduced
        if self.size == len(self.full):
            return Ranked(np.arange(self.size), self.full)
        ids = np.flatnonzero(self.full > -np.inf)
        return Ranked(ids, self.full[ids])

    def top(self, num_tokens: int) -> Ranked:
        """Returns the first `num_tokens` ranks, or all that are known if these are less."""
        num_tokens = min(num_tokens, self.size)
        if self.full is not None:
            return top_ranks(self.full, num_tokens)
        return Ranked(self._reduced.ids[:num_tokens], self._reduced.logits[:num_tokens])


def _changed(full: FloatArray, changed: ChangedTokens | None) -> FloatArray:
    """Changes a whole row in place, and returns it."""
    if changed is not None:
        full[changed.ids] = changed.change(full[changed.ids])
    return full


def _rank_reduced(row: LogitsRow, changed: ChangedTokens | None) -> Ranked:
    ids = np.asarray(row.candidate_ids, dtype=np.int64)
    logits = np.asarray(row.candidate_logits, dtype=np.float64)
    if changed is None:
        return Ranked(ids, logits)
    # Every changed token may leave its place among the candidates to a token that is not known.
    num_known = len(ids) - len(changed)
    ids, logits = _with_changed(Ranked(ids, logits), changed, row)
    order = np.lexsort((ids, -logits))[:num_known]
    return Ranked(ids[order], logits[order])


def _with_changed(best: Ranked, changed: ChangedTokens, row: LogitsRow) -> Ranked:
    """Puts all changed tokens behind those that are not.

    Args:
        best: Some tokens with their logits as the model made them.
        changed: Tokens whose logits change; `row` names exactly these.
        row: As the last stage sent it.
    """
    # For many, far faster than `np.isin`.
    is_kept = np.ones(1 + max(best.ids.max(initial=0), changed.ids.max(initial=0)), dtype=np.bool_)
    is_kept[changed.ids] = False
    kept = is_kept[best.ids]
    logits = changed.change(np.asarray(row.token_logits, dtype=np.float64))
    return Ranked(
        np.concatenate([best.ids[kept], changed.ids]),
        np.concatenate([best.logits[kept], logits]),
    )


def top_ranks(logits: FloatArray, num_tokens: int) -> Ranked:
    """Returns the first ranks of a whole row, by rising id where logits are equal.

    Linear in the row, plus the sort of what is returned.
    """
    if num_tokens == 0:
        return Ranked(np.empty(0, dtype=np.int64), np.empty(0))
    if num_tokens == 1:
        ids = np.array([logits.argmax()])
        return Ranked(ids, logits[ids])
    index = len(logits) - num_tokens
    lowest = np.partition(logits, index)[index]
    # By rising id, and more than wanted when some equal the lowest.
    ids = np.flatnonzero(logits >= lowest)
    ids = ids[np.argsort(-logits[ids], kind="stable")[:num_tokens]]
    return Ranked(ids, logits[ids])
