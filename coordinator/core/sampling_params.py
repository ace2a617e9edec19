"""How the next token of a request is chosen, as validated data."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Self

from stagecoach.contract.errors import InvalidArgumentError

MAX_LOGIT_BIASES = 1024
_PREFIX = "sampling."
"""Where the parameters lie in `stagecoach.v1.GenerateRequest`, whose names errors have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Parameters of one request; the defaults are greedy sampling without any change of logits.

    Raises:
        InvalidArgumentError: A value is out of range or not finite; the error names the field.
    """

    temperature: float = 0.0
    """0 is greedy; range [0, 100]."""
    top_p: float = 1.0
    """Nucleus sampling (arXiv:1904.09751); range (0, 1]."""
    top_k: int = 0
    """0 keeps all tokens."""
    min_p: float = 0.0
    """Share of the highest probability (arXiv:2407.01082); range [0, 1]."""
    repetition_penalty: float = 1.0
    """Over prompt and output (arXiv:1909.05858); range [0.001, 100]."""
    presence_penalty: float = 0.0
    """Over the output; range [-2, 2]."""
    frequency_penalty: float = 0.0
    """Over the output, per occurrence; range [-2, 2]."""
    logit_bias: Mapping[int, float] = field(default_factory=lambda: MappingProxyType({}))
    """Added to logits by token id; at most `MAX_LOGIT_BIASES` values in [-100, 100]."""
    seed: int | None = None
    """Seed in [0, 2**64). None: the coordinator draws one."""

    def __post_init__(self) -> None:
        _check_range("temperature", self.temperature, 0.0, 100.0)
        _check_range("top_p", self.top_p, 0.0, 1.0, open_low=True)
        _check_range("top_k", self.top_k, 0, 2**32 - 1)
        _check_range("min_p", self.min_p, 0.0, 1.0)
        _check_range("repetition_penalty", self.repetition_penalty, 0.001, 100.0)
        _check_range("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _check_range("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        check_num_biases(len(self.logit_bias))
        for token_id, bias in self.logit_bias.items():
            if not -100.0 <= bias <= 100.0:  # of a thousand, none is named that is in range
                _check_range(f"logit_bias[{token_id}]", bias, -100.0, 100.0)
        if self.seed is not None:
            _check_range("seed", self.seed, 0, 2**64 - 1)

    def with_seed(self, seed: int) -> Self:
        """These parameters with a seed, where they have none."""
        return self if self.seed is not None else replace(self, seed=seed)


def check_num_biases(num_biases: int) -> None:
    """Checks a count before the biases themselves are looked at.

    Raises:
        InvalidArgumentError: It is more than `MAX_LOGIT_BIASES`.
    """
    if num_biases > MAX_LOGIT_BIASES:
        raise InvalidArgumentError(
            f"{_PREFIX}logit_bias has {num_biases} entries, at most {MAX_LOGIT_BIASES} are taken",
            field=f"{_PREFIX}logit_bias",
        )


def _check_range(
    name: str, value: float, low: float, high: float, *, open_low: bool = False
) -> None:
    field = _PREFIX + name.partition("[")[0]
    below = value <= low if open_low else value < low
    if not math.isfinite(value) or below or value > high:
        bracket = "(" if open_low else "["
        raise InvalidArgumentError(
            f"{_PREFIX}{name} is {value}, must be in {bracket}{low}, {high}]", field=field
        )
