"""What the tokenizers library raises, as errors of ours.

It has no class of its own for a tokenizer that cannot be built or a text that cannot be encoded,
and where its code in Rust panics, it raises what is no `Exception` at all.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from stagecoach.contract.errors import StagecoachError

_PANIC = "PanicException"
"""Name of the class of a panic in a native library; the module of that class cannot be imported."""


@contextmanager
def library_faults(refusal: Callable[[str], StagecoachError]) -> Iterator[None]:
    """Turns what the library raises inside into an error of ours.

    Args:
        refusal: Makes it of the library's words.
    """
    try:
        yield
    except StagecoachError:
        raise
    except Exception as error:  # the library raises no narrower class
        raise refusal(_words(error)) from error
    except BaseException as error:
        if type(error).__name__ != _PANIC:
            raise
        raise refusal(_words(error)) from error


def _words(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or "it does not say why"
