"""Small files of text: read whole, with what is wrong with them in words."""

import json
from collections.abc import Mapping
from pathlib import Path

from stagecoach.contract.errors import ModelFilesError
from stagecoach.model_files.lfs_pointer import LFS_BEGINNING, refuse_lfs_pointer


def read_text(path: Path, name: str) -> str:
    """Reads a text file in UTF-8, of which some editors mark the beginning.

    Args:
        path: The file.
        name: What errors call it.

    Raises:
        ModelFilesError: It cannot be read, is not UTF-8, or is only the pointer to a file.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ModelFilesError(f"{name} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ModelFilesError(
            f"{name} is not text in UTF-8: byte {error.start} is {error.object[error.start]}"
        ) from error
    refuse_lfs_pointer(name, text[: len(LFS_BEGINNING)].encode())
    return text


def json_object(text: str, name: str) -> Mapping[str, object]:
    """Parses a JSON object.

    Args:
        text: Content of a file.
        name: What errors call it.

    Raises:
        ModelFilesError: It is something else.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelFilesError(f"{name} is not JSON: {_fault(text, error)}") from error
    if not isinstance(content, dict):
        raise ModelFilesError(f"{name} is not a JSON object: it begins with {text.strip()[:20]!r}")
    return content


def _fault(text: str, error: ValueError | RecursionError) -> str:
    """What is wrong with a text that is not JSON."""
    if not text.strip():
        return "it is empty"
    if text.lstrip().startswith("<"):
        return f"it begins with {text.lstrip()[:20]!r}, as a web page does"
    if isinstance(error, json.JSONDecodeError):
        is_cut = error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated")
        cut = "; it seems to be cut off" if is_cut else ""
        return f"{error.msg.lower()} in line {error.lineno}, column {error.colno}{cut}"
    return "it nests too deep" if isinstance(error, RecursionError) else "a number is too long"
