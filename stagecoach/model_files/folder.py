"""What a model in the Hugging Face layout asks of the folder that it is in, here or on a hub."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from stagecoach.model_files.model_files import ByteReport


class Folder(Protocol):
    """Files by name, wherever they are."""

    model_id: str
    """Name of the model, for people."""

    def find(self, name: str) -> Path | None:
        """Returns the path of a file, fetching it first if need be; None if there is none."""
        ...

    def find_all(self, names: Sequence[str], on_download: ByteReport) -> dict[str, Path | None]:
        """Finds several files as `find` does, and tells how far their fetching is."""
        ...

    def find_here(self, name: str) -> Path | None:
        """Returns the path of a file if it is on this machine."""
        ...

    def names(self) -> Sequence[str]:
        """Names of what there is, or of what is well known of it; for people."""
        ...

    def names_in(self, subfolder: str) -> Sequence[str]:
        """Names of what there is in a folder inside, in order; in this one for an empty name.

        A name has no folder in it.
        """
        ...

    def unknown(self, name: str) -> str | None:
        """Says why nobody knows whether there is a file that was not found; None: there is none."""
        ...

    def checksums(self, names: Sequence[str]) -> Mapping[str, str] | None:
        """Checksums that a hub knows files by; None where there is none or it does not say."""
        ...

    def tensor_types(self, name: str) -> dict[str, tuple[str, tuple[int, ...]]] | None:
        """Reads dtype and shape of all tensors of a safetensors file, without its tensors.

        Returns:
            None if the file is not found.
        """
        ...
