"""What a configuration says of its quantization, read by name, with refusals that name the key."""

import re
from collections.abc import Mapping, Sequence
from typing import TypeGuard

from stagecoach.contract.errors import ModelFilesError, UnsupportedModelError
from stagecoach.model_files.frozen_json import shown

_PAIR = re.compile(r"[0-9]{1,10}[xX][0-9]{1,10}")

MAX_SIZE = (1 << 31) - 1
"""Most that a size may be, of which products of two are whole numbers of 64 bits."""

INSTEAD = (
    "take the model that they were made from, or a form of it as GGUF, AWQ, GPTQ, "
    "compressed-tensors, FP8 or bitsandbytes"
)
"""What runs in the place of weights that are not served; for people."""


class QuantizationSettings:
    """An object of settings.

    Args:
        values: Its content.
        path: How errors call it, as `config.json: quantization_config`.
    """

    def __init__(self, values: Mapping[str, object], path: str) -> None:
        self.values = values
        self.path = path

    def get(self, key: str, *older: str) -> object:
        """Returns a value under its name, or else an older one; None where there is none."""
        found = (self.values[name] for name in (key, *older) if self.values.get(name) is not None)
        return next(found, None)

    def whole(self, key: str, *older: str, default: int | None = None) -> int:
        """Returns a whole number.

        Raises:
            ModelFilesError: It is none, is above 2147483647, or is not said and has no default.
        """
        value = self.get(key, *older)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int):
            raise ModelFilesError(f"{self.path}.{key} is {shown(value)}, must be a whole number")
        if abs(value) > MAX_SIZE:
            raise ModelFilesError(
                f"{self.path}.{key} is {shown(value)}, must be at most {MAX_SIZE}"
            )
        return value

    def flag(self, key: str, *, default: bool) -> bool:
        """Returns whether something is so.

        Raises:
            ModelFilesError: The value is neither true nor false.
        """
        value = self.get(key)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise ModelFilesError(f"{self.path}.{key} is {shown(value)}, must be true or false")
        return value

    def text(self, key: str, *older: str, default: str = "") -> str:
        """Returns a text in lower case.

        Raises:
            ModelFilesError: The value is something else.
        """
        value = self.get(key, *older)
        value = default if value is None else value
        if not isinstance(value, str):
            raise ModelFilesError(f"{self.path}.{key} is {shown(value)}, must be a text")
        return value.lower()

    def within(self, key: str) -> "QuantizationSettings":
        """Returns the settings of an object inside; empty where there is none.

        Raises:
            ModelFilesError: The value is no object.
        """
        value = self.get(key)
        value = {} if value is None else value
        if not isinstance(value, Mapping):
            raise ModelFilesError(f"{self.path}.{key} is {shown(value)}, must be an object")
        return QuantizationSettings(value, f"{self.path}.{key}")

    def said(self, *keys: str) -> tuple[str, ...]:
        """Returns which of the keys have a value, by their paths."""
        return tuple(f"{self.path}.{key}" for key in keys if self.get(key) is not None)

    def pair(self, key: str) -> tuple[int, int] | None:
        """Returns the rows and columns of a block; None where there is no such setting.

        Raises:
            ModelFilesError: The value is no such pair, nor one in words as `128x128`.
        """
        value = self.get(key)
        if value is None:
            return None
        sizes = value if isinstance(value, Sequence) else ()
        if isinstance(value, str) and _PAIR.fullmatch(value):
            sizes = [int(size) for size in value.lower().split("x")]
        whole = [size for size in sizes if is_size(size)]
        if len(sizes) != 2 or len(whole) != 2:
            raise ModelFilesError(
                f"{self.path}.{key} is {shown(value)}, must be two sizes from 1 to {MAX_SIZE}"
            )
        return whole[0], whole[1]

    def choice(self, key: str, value: object, *served: object) -> None:
        """Checks a value that says what the stored tensors mean.

        Raises:
            UnsupportedModelError: It is none of those that are served.
        """
        if value not in served:
            known = ", ".join(map(shown, served))
            raise self.refused(f"{key} {shown(value)}", f"; known: {known}")

    def refused(self, what: str, known: str = "") -> UnsupportedModelError:
        """Says that weights in a form are not served, and what would work instead."""
        return UnsupportedModelError(
            f"weights quantized with {what} ({self.path}{known}) are not served: {INSTEAD}",
            key="quantization_config",
        )


def is_size(value: object) -> TypeGuard[int]:
    """Whether a value of JSON is a whole number from 1 to `MAX_SIZE`."""
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_SIZE
