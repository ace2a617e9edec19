"""What a bench found, as values."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Self

from coordinator.bench.decode import (
    DecodedRequest,
    decode_tokens_per_s,
    prefill_tokens_per_s,
    time_to_first_token_s,
)
from coordinator.bench.time_split import TimeSplit
from stagecoach.client import ModelStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchPlan:
    """What is measured. Every request is greedy and ignores the model's end tokens."""

    batches: tuple[int, ...]
    """Requests at the same time, one figure for each size."""
    prompt_tokens: int
    output_tokens: int
    repeats: int
    """Counted runs of each batch size, after one that warms up."""
    same_prompt: bool = False
    """All requests send the same prompt, so that a prefix cache helps; else all differ."""
    timeout_s: float = 600.0
    """Time limit of one run."""
    model: str | None = None
    """A name of the model. None: the only one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One batch of requests that ran together."""

    tokens_per_s: float
    """Decoded by all of them, prefill excluded."""
    time_to_first_token_s: float
    prefill_tokens_per_s: float
    split: TimeSplit

    @classmethod
    def of(cls, batch: Sequence[DecodedRequest], prompt_tokens: int) -> Self:
        """Takes the figures of one run.

        Raises:
            InvalidArgumentError: The requests are too short to tell a speed.
        """
        return cls(
            tokens_per_s=decode_tokens_per_s(batch),
            time_to_first_token_s=time_to_first_token_s(batch),
            prefill_tokens_per_s=prefill_tokens_per_s(batch, prompt_tokens),
            split=TimeSplit.of(batch),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchRow:
    """One batch size: medians over its runs, and their spread."""

    batch: int
    tokens_per_s: float
    tokens_per_s_min: float
    tokens_per_s_max: float
    limit_tokens_per_s: float | None
    """What emulated devices allow at most; None where it is not known."""
    time_to_first_token_s: float
    prefill_tokens_per_s: float
    split: TimeSplit

    @classmethod
    def of(cls, batch: int, runs: Sequence[Run], limit_tokens_per_s: float | None) -> Self:
        """Takes the medians of at least one run."""
        rates = [run.tokens_per_s for run in runs]
        return cls(
            batch=batch,
            tokens_per_s=median(rates),
            tokens_per_s_min=min(rates),
            tokens_per_s_max=max(rates),
            limit_tokens_per_s=limit_tokens_per_s,
            time_to_first_token_s=median(run.time_to_first_token_s for run in runs),
            prefill_tokens_per_s=median(run.prefill_tokens_per_s for run in runs),
            split=TimeSplit.median([run.split for run in runs]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchResult:
    """The table."""

    plan: BenchPlan
    status: ModelStatus
    """State of the model before the first run."""
    no_limit_reason: str | None
    """Why the limit of an emulated cluster is not known; None when it is, or for a real one."""
    rows: tuple[BenchRow, ...]
    """Results of each batch size, in the order of the plan."""
