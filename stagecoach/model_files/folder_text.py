"""Reads the small files of a model's folder, and tells what is not there from what is not known."""

import logging
from collections.abc import Mapping

from stagecoach.contract.errors import ModelFilesError
from stagecoach.model_files.folder import Folder
from stagecoach.model_files.text_file import json_object, read_text

_log = logging.getLogger(__name__)


class FolderText:
    """The small files of a folder.

    Args:
        folder: Where the files are.
    """

    def __init__(self, folder: Folder) -> None:
        self._folder = folder

    def refuse_unknown(self, name: str) -> None:
        """Refuses to go on without a file that was not found but may exist."""
        unknown = self._folder.unknown(name)
        if unknown is not None:
            raise ModelFilesError(unknown)

    def warn_of_unknown(self, *names: str) -> None:
        """Names the files that were not found but may exist, and without which a model works."""
        unknown = [name for name in names if self._folder.unknown(name) is not None]
        if unknown:
            _log.warning(
                "the hub is offline: what is not in the cache counts as not there",
                extra={"model": self._folder.model_id, "files": unknown},
            )

    def text(self, name: str) -> str | None:
        """Reads a file; None without it."""
        path = self._folder.find(name)
        if path is None:
            return None
        return read_text(path, name)

    def json(self, name: str) -> Mapping[str, object] | None:
        """Reads an object of JSON; None without the file.

        Raises:
            ModelFilesError: The file holds something else.
        """
        text = self.text(name)
        if text is None:
            return None
        return json_object(text, name)
