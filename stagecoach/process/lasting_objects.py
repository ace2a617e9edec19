"""Spares Python's garbage collector what a start imports."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_YOUNG_ONLY = (2000, 1_000_000, 1_000_000)
"""What is young is looked at, so that memory does not grow; what survived that is not again."""


@contextmanager
def lasting_objects() -> Iterator[None]:
    """Takes what is made inside for permanent, as imported modules are.

    The collector leaves what got older alone meanwhile, and never looks at what is there at the
    end. Importing torch and transformers makes a million objects that stay; looking through them
    again and again was a quarter of the import, and a pause of 0.1 s each time that it came up
    later.
    """
    thresholds = gc.get_threshold()
    gc.set_threshold(*_YOUNG_ONLY)
    try:
        yield
    finally:
        gc.freeze()
        gc.set_threshold(*thresholds)
