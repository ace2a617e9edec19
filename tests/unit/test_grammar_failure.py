"""What is said of a grammar whose process did not answer."""

import pytest

from coordinator.constraint.failure import sandbox_failure
from coordinator.core.grammar import Grammar, GrammarKind
from coordinator.sandbox import CallTimeoutError


@pytest.mark.parametrize("work", ["compiled", "followed"])
def test_a_timeout_says_what_took_too_long(work: str) -> None:
    grammar = Grammar(kind=GrammarKind.REGEX, text="a")
    error = sandbox_failure(grammar, CallTimeoutError("late"), work=work, limit_s=5.0)
    assert str(error) == f"grammar.regex was not {work} within 5 s"
