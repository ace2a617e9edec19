"""What checks found, judged by limits. Plain data: imports nothing that computes."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple


class Verdict(StrEnum):
    """What is said of a row."""

    PASS = "pass"
    FAIL = "FAIL"
    NOT_REACHED = "NOT REACHED"
    NOT_JUDGED = "not judged on a CPU"


class Limit(NamedTuple):
    """What a figure has to keep to; at least one of both is given."""

    least: float | None = None
    most: float | None = None

    def holds(self, value: float) -> bool:
        """Whether a figure keeps to it. NaN never does."""
        return (self.least is None or value >= self.least) and (
            self.most is None or value <= self.most
        )

    def strain(self, value: float) -> float:
        """How near a figure is to the limit: above 1 it is beyond. To find the worst of several."""
        if self.most is not None:
            return value / self.most
        assert self.least is not None, "a limit has a side"
        return math.inf if value <= 0 else self.least / value


class Figure(NamedTuple):
    """One measured number."""

    name: str
    """Of its row; once in a check."""
    value: float
    unit: str
    """What the number counts; empty for a share of one."""
    limit: Limit
    note: str = ""
    group: str = ""
    """The page shows the rows of a group that pass in one line. Empty: a line of its own."""
    is_of_cards: bool = False
    """True: the limit says something about cards alone, and is not for a CPU."""


class Outcome(NamedTuple):
    """What came of one check's process."""

    facts: Mapping[str, str]
    """For the head of the report."""
    names: Sequence[str] | None
    """Of its rows, in order; None: it ended before it had said them."""
    figures: Sequence[Figure]
    failure: str
    """Why it ended early, in a line; empty when it ran to its end."""
    elapsed_s: float


class Row(NamedTuple):
    """One line of the report."""

    name: str
    verdict: Verdict
    note: str
    figure: Figure | None = None
    """None where there is none, or for a check as a whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckReport:
    """The rows of one check."""

    check: str
    rows: tuple[Row, ...]
    elapsed_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Everything."""

    facts: Mapping[str, str]
    checks: tuple[CheckReport, ...]
    is_whole: bool
    """False: checks or models were left out as asked, so that it says less of the card."""

    @property
    def rows(self) -> list[Row]:
        """Of all checks."""
        return [row for check in self.checks for row in check.rows]

    def count(self, *verdicts: Verdict) -> int:
        """How many rows have one of these verdicts."""
        return sum(row.verdict in verdicts for row in self.rows)

    @property
    def has_passed(self) -> bool:
        """Whether there are rows, and none failed or was not reached."""
        return bool(self.rows) and not self.count(Verdict.FAIL, Verdict.NOT_REACHED)


def judge(outcome: Outcome, *, is_card: bool) -> tuple[Row, ...]:
    """Compares what a check found with the limits.

    Args:
        outcome: Of the check's process.
        is_card: Whether it ran on a card, to which all limits apply.

    Returns:
        A row for each name; and one for the check as a whole where it did not run to its end, or
        showed nothing.
    """
    figures = {figure.name: figure for figure in outcome.figures}
    rows = []
    if outcome.failure:
        rows.append(Row("ran to its end", Verdict.FAIL, outcome.failure))
    elif not outcome.names:
        rows.append(Row("ran to its end", Verdict.FAIL, "the check has no rows"))
    for name in outcome.names or ():
        figure = figures.get(name)
        if figure is not None:
            rows.append(_row(figure, is_card=is_card))
        elif outcome.failure:
            rows.append(Row(name, Verdict.NOT_REACHED, "the check ended before it"))
        else:
            rows.append(Row(name, Verdict.FAIL, "the check gave no such figure"))
    return tuple(rows)


def not_started(check: str, why: str) -> CheckReport:
    """Returns what is said of a check that was not run."""
    return CheckReport(check=check, rows=(Row("started", Verdict.NOT_REACHED, why),), elapsed_s=0.0)


def worst(rows: Iterable[Row]) -> Row:
    """Returns the row, of those with figures, that is nearest to its limit; there is one."""
    return max(rows, key=_strain)


def _strain(row: Row) -> float:
    assert row.figure is not None, "rows of a group have figures"
    return row.figure.limit.strain(row.figure.value)


def _row(figure: Figure, *, is_card: bool) -> Row:
    if figure.is_of_cards and not is_card:
        verdict = Verdict.NOT_JUDGED
    else:
        verdict = Verdict.PASS if figure.limit.holds(figure.value) else Verdict.FAIL
    return Row(figure.name, verdict, figure.note, figure)
