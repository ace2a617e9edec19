"""What a configuration says of its quantization, read by name, with refusals that name the key."""

from collections.abc import Mapping, Sequence

from stagecoach.contract.errors import ModelFilesError, UnsupportedModelError
from stagecoach.model_files.frozen_json import shown

_INSTEAD = (
    "take the model that they were made from, or a form of it as GGUF, AWQ, GPTQ, "
    "compressed-tensors, FP8 or bitsandbytes"
)


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
            ModelFilesError: It is none, or is not said and has no default.
        """
        value = self.get(key, *older)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int):
            raise ModelFilesError(f"{self.path}.{key} is {shown(value)}, must be a whole number")
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

    def pair(self, key: str) -> tuple[int, int] | None:
        """Returns the rows and columns of a block; None where there is no such setting.

        Raises:
            ModelFilesError: The value is no such pair.
        """
        value = self.get(key)
        if value is None:
            return None
        sizes = value if isinstance(value, Sequence) and not isinstance(value, str) else ()
        whole = [size for size in sizes if isinstance(size, int) and not isinstance(size, bool)]
        if len(sizes) != 2 or len(whole) != 2 or min(whole) < 1:
            raise ModelFilesError(f"{self.path}.{key} is {shown(value)}, must be two sizes")
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
            f"weights quantized with {what} ({self.path}{known}) are not served: {_INSTEAD}",
            key="quantization_config",
        )
