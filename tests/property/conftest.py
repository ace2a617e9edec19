"""Grammars of property tests are compiled in this process, which would be weighed each time."""

from collections.abc import Iterator

import pytest

from coordinator.constraint import grammar_job


@pytest.fixture(scope="module", autouse=True)
def _unweighed() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grammar_job, "_own_bytes", lambda: 0)
        yield
