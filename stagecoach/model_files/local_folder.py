"""The folder of a model on this machine."""

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from stagecoach.contract.errors import ModelFilesError
from stagecoach.model_files.listing import name_of
from stagecoach.model_files.model_files import ByteReport
from stagecoach.model_files.safetensors_file import SafetensorsFile


class LocalFolder:
    """A folder on this machine."""

    def __init__(self, path: Path) -> None:
        self.model_id = name_of(path.resolve())
        self._path = path

    def find(self, name: str) -> Path | None:
        """Returns the path of a file, or None.

        Raises:
            ModelFilesError: The folder may not be read, or the name is that of something else.
        """
        path = self._path / name
        try:
            if path.is_file():
                return path
            kind = path.lstat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise ModelFilesError(f"{path} cannot be read: {error.strerror}") from error
        raise ModelFilesError(f"{name} is {_in_words(path, kind)}")

    def names(self) -> Sequence[str]:
        """Names of all that is in it."""
        try:
            return sorted(path.name for path in self._path.iterdir())
        except OSError as error:
            raise ModelFilesError(f"{self._path} cannot be read: {error.strerror}") from error

    def names_in(self, subfolder: str) -> Sequence[str]:
        """Names of all that is in a folder inside; none if there is no such folder."""
        path = self._path / subfolder
        try:
            return sorted(path.name for path in path.iterdir()) if path.is_dir() else ()
        except OSError as error:
            raise ModelFilesError(f"{path} cannot be read: {error.strerror}") from error

    def find_all(self, names: Sequence[str], on_download: ByteReport) -> dict[str, Path | None]:
        """Finds several files; nothing is fetched."""
        return {name: self.find(name) for name in names}

    def find_here(self, name: str) -> Path | None:
        """Returns the path of a file, or None."""
        return self.find(name)

    def unknown(self, name: str) -> None:
        """Returns None: what is not here does not exist."""
        return

    def checksums(self, names: Sequence[str]) -> None:
        """Returns None: there is no hub."""
        return

    def tensor_types(self, name: str) -> dict[str, tuple[str, tuple[int, ...]]] | None:
        """Reads the file's header; None if there is no such file."""
        if self.find(name) is None:
            return None
        with SafetensorsFile(self._path / name) as file:
            return {key: (entry.dtype, entry.shape) for key, entry in file.entries.items()}


def _in_words(path: Path, kind: int) -> str:
    """What is there instead of a file."""
    if path.is_dir():
        return "a folder, must be a file"
    if stat.S_ISLNK(kind) and not path.exists():
        return f"a link to {os.readlink(path)}, which is not there"
    return "no file"
