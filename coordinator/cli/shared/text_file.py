"""Texts that a command reads from files."""

from pathlib import Path

from stagecoach.contract.errors import InvalidArgumentError


def read_file(path: Path, name: str) -> bytes:
    """Reads a whole file.

    Args:
        path: The file.
        name: What the caller calls it, as the error says: a flag, or an argument.

    Raises:
        OSError: It cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise OSError(f"cannot read {name} {path}: {error.strerror}") from error


def decode_text(data: bytes, source: str, field: str) -> str:
    """Reads bytes as text.

    Args:
        data: The bytes.
        source: Where they are from, for the error.
        field: The parameter that named them.

    Raises:
        InvalidArgumentError: They are not UTF-8.
    """
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InvalidArgumentError(
            f"{source} is not UTF-8 text: {error.reason} at byte {error.start}", field=field
        ) from error
