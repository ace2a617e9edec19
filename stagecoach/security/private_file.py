"""Files that hold secrets, private keys and API keys, and what lies beside them."""

import os
import stat
from pathlib import Path

from stagecoach.contract.errors import InvalidArgumentError

MAX_SECRET_FILE_BYTES = 2**20
"""Most bytes of one key, certificate chain or list of API keys; a larger file is not one."""


def read_private(path: Path, *, field: str) -> bytes:
    """Reads a file that only its owner may read; or, if that is root, its group too.

    The latter is how container engines hand secrets to a process that is not root, and the rule is
    that of PostgreSQL for its keys.

    Args:
        path: The file.
        field: Name of the option, for errors.

    Raises:
        InvalidArgumentError: It cannot be read, is too large, or others can read or write it.
    """
    data, found = _read(path, field=field)
    mode = found.st_mode
    forbidden = stat.S_IRWXG | stat.S_IRWXO
    if found.st_uid == 0:
        forbidden &= ~stat.S_IRGRP
    if mode & forbidden:
        raise InvalidArgumentError(
            f"{field} {path}: others can read or write it (mode {stat.S_IMODE(mode):04o}); "
            f"run chmod 600 {path}",
            field=field,
        )
    return data


def read_public(path: Path, *, field: str) -> bytes:
    """Reads a small file that is no secret.

    Raises:
        InvalidArgumentError: It cannot be read or is too large.
    """
    return _read(path, field=field)[0]


def write_private(path: Path, data: bytes, *, overwrite: bool = False) -> None:
    """Writes a file that only its owner may read, in one step: no reader sees half of it.

    Raises:
        InvalidArgumentError: It is there already and `overwrite` is False, or cannot be written.
    """
    _write(path, data, mode=0o600, overwrite=overwrite)


def write_public(path: Path, data: bytes, *, overwrite: bool = False) -> None:
    """Writes a file that everyone may read, such as a server that runs as another user.

    Raises:
        InvalidArgumentError: As for `write_private`.
    """
    _write(path, data, mode=0o644, overwrite=overwrite)


def _write(path: Path, data: bytes, *, mode: int, overwrite: bool) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if overwrite:
                partial.replace(path)
            else:
                _move_beside_others(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise InvalidArgumentError(f"cannot write {path}: {error.strerror}") from error


def _move_beside_others(partial: Path, path: Path) -> None:
    """Gives a file its name; unlike a rename, never in the place of another file."""
    try:
        os.link(partial, path)
    except FileExistsError:
        raise InvalidArgumentError(
            f"{path} is there already; --overwrite replaces it", field="overwrite"
        ) from None


def _read(path: Path, *, field: str) -> tuple[bytes, os.stat_result]:
    """The content of a file and its status, both of the same open file."""
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            data = file.read(MAX_SECRET_FILE_BYTES + 1)
    except OSError as error:
        raise InvalidArgumentError(
            f"{field} {path} cannot be read: {error.strerror}", field=field
        ) from error
    if len(data) > MAX_SECRET_FILE_BYTES:
        raise InvalidArgumentError(
            f"{field} {path} has more than {MAX_SECRET_FILE_BYTES} bytes", field=field
        )
    return data, found
