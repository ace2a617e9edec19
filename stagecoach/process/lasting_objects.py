"""Spares Python's garbage collector what a start imports."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_YOUNG_ONLY = (2000, 1_000_000, 1_000_000)
"""Only the youngest generation is collected, so that memory does not grow."""


@contextmanager
def lasting_objects() -> Iterator[None]:
    """Takes what is made inside for permanent, as imported modules are.

    Inside, the collector looks at young objects only. Afterwards it never looks at any object that
    is there at the end. Importing torch and transformers makes a million objects that stay: looking
    through them again and again took a quarter of the import, and later caused pauses of 0.1 s.
    """
    thresholds = gc.get_threshold()
    gc.set_threshold(*_YOUNG_ONLY)
    try:
        yield
    finally:
        gc.freeze()
        gc.set_threshold(*thresholds)
