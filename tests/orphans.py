"""A test process that is the parent of what loses its own, for the time of a test."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

from stagecoach.process.orphans import adopt_orphans

_PR_SET_CHILD_SUBREAPER = 36


@contextmanager
def adopted_orphans() -> Iterator[None]:
    """Adopts orphans inside; later ones go where they went before, and are not waited for here."""
    adopt_orphans()
    try:
        yield
    finally:
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
