"""From the header of a call to its caller, by a list of keys that may change while serving."""

import logging
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import NamedTuple

from coordinator.doors.access.api_key import ApiKeys, bearer
from stagecoach.contract.errors import InvalidArgumentError, UnauthenticatedError
from stagecoach.security.private_file import read_private

_log = logging.getLogger(__name__)


class Caller(NamedTuple):
    """Whose API key a call carries."""

    name: str


current_caller: ContextVar[Caller | None] = ContextVar("current_caller", default=None)
"""Caller of the call that this task answers, once a door has authenticated it; None without API
keys."""


class Callers:
    """Knows every key. Event loop only.

    Args:
        keys: Makes the list of good keys, at once and whenever it may have changed.
    """

    def __init__(self, keys: Callable[[], ApiKeys]) -> None:
        """Reads the keys.

        Raises:
            InvalidArgumentError: As `keys`.
        """
        self._keys = keys
        keys()

    @classmethod
    def of_file(cls, path: Path) -> "Callers":
        """Takes the keys of a file, and notices when it changes.

        A file that is damaged or away is not taken: the keys before it stay good, and the log says
        so.

        Raises:
            InvalidArgumentError: The file cannot be read, others can read it, or it is damaged.
        """
        return cls(_WatchedFile(path).keys)

    @classmethod
    def of_text(cls, text: str) -> "Callers":
        """Takes the keys of the environment.

        Raises:
            InvalidArgumentError: It has another form.
        """
        keys = ApiKeys.parse(text, source="STAGECOACH_API_KEYS")
        return cls(lambda: keys)

    def authenticate(self, authorization: str | None) -> Caller:
        """Finds out who calls.

        Args:
            authorization: Value of the header.

        Raises:
            UnauthenticatedError: There is no key, or none of ours.
        """
        owner = self._keys().owner_of(bearer(authorization))
        if owner is None:
            raise UnauthenticatedError("the API key is wrong")
        return Caller(owner)


class _WatchedFile:
    """Reads a file again when it was written or replaced; asking costs one `stat`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp = self._look()
        self._keys = self._read()
        _log.info("%d API keys from %s", len(self._keys.digests), path)

    def keys(self) -> ApiKeys:
        stamp = self._look()
        if stamp != self._stamp:
            self._stamp = stamp
            try:
                self._keys = self._read()
                _log.info("%d API keys from %s", len(self._keys.digests), self._path)
            except InvalidArgumentError as error:
                _log.error("the new API keys are not taken: %s", error.message)
        return self._keys

    def _read(self) -> ApiKeys:
        data = read_private(self._path, field="api_keys_file")
        try:
            return ApiKeys.parse(data.decode(), source=f"--api-keys-file {self._path}")
        except UnicodeDecodeError:
            raise InvalidArgumentError(
                f"api_keys_file {self._path} is not text", field="api_keys_file"
            ) from None

    def _look(self) -> tuple[int, int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino, found.st_size
