"""Spares Python's garbage collector what a start imports."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def lasting_objects() -> Iterator[None]:
    """Takes what is made inside for permanent, as imported modules are.

    The collector does not run meanwhile, and never looks at what is there at the end. Importing
    torch and transformers makes a million objects, none of them garbage; looking through them again
    and again was a quarter of the import, and a pause of 0.1 s each time that it came up later.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
