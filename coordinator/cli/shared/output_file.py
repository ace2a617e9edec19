"""Files that a command writes at its end: what is wrong with them is said at its start."""

import os
from pathlib import Path

from stagecoach.contract.errors import InvalidArgumentError


def check_writable(option: str, path: Path) -> None:
    """Checks that a file could be written there; does not touch it.

    Args:
        option: That named it, without dashes, for the error.
        path: The file.

    Raises:
        InvalidArgumentError: It is a folder, or its folder is missing or read-only.
    """
    target = path if path.exists() else path.parent
    if path.is_dir() or not target.exists() or not os.access(target, os.W_OK):
        raise InvalidArgumentError(f"--{option} {path} cannot be written", field=option)
