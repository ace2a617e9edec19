"""What each sampling parameter does: one class a parameter, which knows both of its halves.

One half is what it needs of the last stage, the other what it does with the answer. A parameter is
either a change, which changes the logits of some tokens, or a truncation, which says which of the
ranked tokens may be drawn. `changes_of` and `truncations_of` give those that a request has, in the
order of application; a parameter that has its default value is not among them.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple, Protocol, Self

import numpy as np
import numpy.typing as npt

from coordinator.core.sampling_params import SamplingParams

FloatArray = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

_MASS_MARGIN = 1e-4
_GAP_MARGIN = 1e-3
"""Asked for in addition, because the stage rounds differently when it decides what suffices."""


class Scope(NamedTuple):
    """The tokens that a change needs by name, and as many more candidates, of the stage."""

    bias: Mapping[int, float] = MappingProxyType({})
    """Tokens that are changed from the start, by an amount for each."""
    prompt: bool = False
    """Whether tokens of the prompt change too."""
    output: bool = False
    """Whether tokens of the output change too, as it grows."""


class Occurrences(NamedTuple):
    """What is known of the tokens whose logits may change; all arrays are `[num_tokens]`."""

    bias: FloatArray
    """Sum of the biases."""
    seen: Mask
    """Occurs in the output, or if a change wants the prompt, in that."""
    output_counts: npt.NDArray[np.int64]
    """How often it occurs in the output."""


class Change(Protocol):
    """A parameter that changes logits."""

    @property
    def scope(self) -> Scope:
        """The tokens that it changes; the same for the whole request."""
        ...

    def change(self, logits: FloatArray, tokens: Occurrences) -> FloatArray:
        """Returns the changed logits `[num_tokens]` of the tokens in all scopes together."""
        ...


class Need(NamedTuple):
    """What a truncation needs of the stage, so that it decides as from the full row."""

    num_candidates: int | None = None
    """So many of the highest; no others can be drawn. None: it depends on the logits."""
    min_mass: float | None = None
    """Candidates that hold this share of the mass. None: it does not look at the mass."""
    min_gap: float | None = None
    """Candidates down to this distance from the highest logit. None: it does not look at it."""
    full_row: bool = False
    """All logits."""


class Head(NamedTuple):
    """The ranked tokens that the truncations so far have left, not normalized."""

    weights: FloatArray
    """Falling `[num_tokens]`: probabilities relative to that of the highest token of the row."""
    row_total: float | None
    """Weight of the whole row; None behind a truncation, when no others are left than these."""

    @property
    def total(self) -> float:
        """Weight of all tokens that are left."""
        return float(self.weights.sum()) if self.row_total is None else self.row_total


class Truncation(Protocol):
    """A parameter that says which tokens may be drawn."""

    def need(self, temperature: float) -> Need:
        """Returns what it needs of the stage.

        Args:
            temperature: Above 0.
        """
        ...

    def keep(self, head: Head) -> Mask:
        """Returns which of the ranked tokens may be drawn, a new mask `[num_tokens]`.

        At least one may be. Any may be dropped; when the lowest is, all tokens that are lower still
        have to be dropped too. Otherwise it is asked again with more of them, if there are more and
        its need has no number of candidates.
        """
        ...


@dataclass(frozen=True, slots=True)
class LogitBias:
    """Adds the bias of each token."""

    bias: Mapping[int, float]

    @classmethod
    def of(cls, params: SamplingParams) -> Self | None:
        """Returns that of a request."""
        return cls(params.logit_bias) if params.logit_bias else None

    @property
    def scope(self) -> Scope:
        """The biased tokens."""
        return Scope(bias=self.bias)

    def change(self, logits: FloatArray, tokens: Occurrences) -> FloatArray:
        """Adds."""
        return logits + tokens.bias


@dataclass(frozen=True, slots=True)
class RepetitionPenalty:
    """Divides positive and multiplies negative logits of tokens seen (CTRL, arXiv:1909.05858)."""

    penalty: float

    @classmethod
    def of(cls, params: SamplingParams) -> Self | None:
        """Returns that of a request."""
        return cls(params.repetition_penalty) if params.repetition_penalty != 1.0 else None

    @property
    def scope(self) -> Scope:
        """All tokens that occur."""
        return Scope(prompt=True, output=True)

    def change(self, logits: FloatArray, tokens: Occurrences) -> FloatArray:
        """Divides or multiplies."""
        penalized = np.where(logits < 0, logits * self.penalty, logits / self.penalty)
        return np.where(tokens.seen, penalized, logits)


@dataclass(frozen=True, slots=True)
class FrequencyPenalty:
    """Subtracts the penalty once for every occurrence in the output."""

    penalty: float

    @classmethod
    def of(cls, params: SamplingParams) -> Self | None:
        """Returns that of a request."""
        return cls(params.frequency_penalty) if params.frequency_penalty != 0.0 else None

    @property
    def scope(self) -> Scope:
        """The tokens of the output."""
        return Scope(output=True)

    def change(self, logits: FloatArray, tokens: Occurrences) -> FloatArray:
        """Subtracts."""
        return logits - self.penalty * tokens.output_counts


@dataclass(frozen=True, slots=True)
class PresencePenalty:
    """Subtracts the penalty from tokens that occur in the output."""

    penalty: float

    @classmethod
    def of(cls, params: SamplingParams) -> Self | None:
        """Returns that of a request."""
        return cls(params.presence_penalty) if params.presence_penalty != 0.0 else None

    @property
    def scope(self) -> Scope:
        """The tokens of the output."""
        return Scope(output=True)

    def change(self, logits: FloatArray, tokens: Occurrences) -> FloatArray:
        """Subtracts."""
        return logits - self.penalty * (tokens.output_counts > 0)


@dataclass(frozen=True, slots=True)
class TopK:
    """Keeps the most likely tokens; of equal ones, those with the lowest ids."""

    num_tokens: int

    @classmethod
    def of(cls, params: SamplingParams) -> Self | None:
        """Returns that of a request."""
        return cls(params.top_k) if params.top_k > 0 else None

    def need(self, temperature: float) -> Need:
        """So many candidates."""
        return Need(num_candidates=self.num_tokens)

    def keep(self, head: Head) -> Mask:
        """Keeps the first."""
        return _first(self.num_tokens, head)


@dataclass(frozen=True, slots=True)
class TopP:
    """Keeps the fewest most likely tokens that hold a share of the mass (arXiv:1904.09751)."""

    share: float

    @classmethod
    def of(cls, params: SamplingParams) -> Self | None:
        """Returns that of a request."""
        return cls(params.top_p) if params.top_p < 1.0 else None

    def need(self, temperature: float) -> Need:
        """Its share of the mass."""
        return Need(min_mass=min(1.0, self.share + _MASS_MARGIN))

    def keep(self, head: Head) -> Mask:
        """Keeps the first."""
        cumulative = head.weights.cumsum()
        return _first(int(cumulative.searchsorted(self.share * head.total)) + 1, head)


@dataclass(frozen=True, slots=True)
class MinP:
    """Keeps tokens at least so many times as likely as the likeliest one (arXiv:2407.01082)."""

    share: float

    @classmethod
    def of(cls, params: SamplingParams) -> Self | None:
        """Returns that of a request."""
        return cls(params.min_p) if params.min_p > 0.0 else None

    def need(self, temperature: float) -> Need:
        """Candidates down to the logit that has this share."""
        return Need(min_gap=_GAP_MARGIN - temperature * math.log(self.share))

    def keep(self, head: Head) -> Mask:
        """Compares with the likeliest."""
        return head.weights >= self.share


CHANGES: tuple[Callable[[SamplingParams], Change | None], ...] = (
    LogitBias.of,
    RepetitionPenalty.of,
    FrequencyPenalty.of,
    PresencePenalty.of,
)
"""Constructors of changes in the order of application; each gives that of a request, or None."""

TRUNCATIONS: tuple[Callable[[SamplingParams], Truncation | None], ...] = (TopK.of, TopP.of, MinP.of)
"""Constructors of truncations in the order of application; each gives that of a request, or
None."""


def changes_of(params: SamplingParams) -> tuple[Change, ...]:
    """Returns the changes of a request, in the order of application."""
    found = (change_of(params) for change_of in CHANGES)
    return tuple(change for change in found if change is not None)


def truncations_of(params: SamplingParams) -> tuple[Truncation, ...]:
    """Returns the truncations of a request, in the order of application."""
    found = (truncation_of(params) for truncation_of in TRUNCATIONS)
    return tuple(truncation for truncation in found if truncation is not None)


def joint_need(truncations: Iterable[Truncation], temperature: float) -> Need:
    """Returns what truncations need together.

    A number of candidates, if any asks for one, is all that is needed: none beyond it can be drawn,
    and the mass that the others look at is that of these candidates.
    """
    needs = [truncation.need(temperature) for truncation in truncations]
    if any(need.full_row for need in needs):
        return Need(full_row=True)
    numbers = [need.num_candidates for need in needs if need.num_candidates is not None]
    if numbers:
        return Need(num_candidates=min(numbers))
    return Need(
        min_mass=max((one.min_mass for one in needs if one.min_mass is not None), default=None),
        min_gap=max((one.min_gap for one in needs if one.min_gap is not None), default=None),
    )


def _first(num_tokens: int, head: Head) -> Mask:
    kept = np.zeros(len(head.weights), dtype=np.bool_)
    kept[:num_tokens] = True
    return kept
