"""Checks a downloaded file against the checksum that the hub names it by.

A hub's cache keeps each file under its entity tag: the SHA-256 of a large file, or the object id
that git gives a small one (SHA-1 over a header and the content).
"""

import hashlib
import re
from pathlib import Path

from stagecoach.contract.errors import ModelFilesError

_CHUNK_BYTES = 4 * 2**20


def check_download(path: Path) -> None:
    """Reads a file that was just downloaded and compares it with its name in the hub's cache.

    One that differs is removed from the cache, so that the next attempt downloads it again. A name
    that is no checksum is not checked: not every mirror keeps to the hub's names.

    Args:
        path: In a snapshot of the cache; a link to the file under its entity tag.

    Raises:
        ModelFilesError: The content is not what the hub has; says both checksums.
    """
    blob = path.resolve()
    if re.fullmatch(r"[0-9a-f]{64}", blob.name):
        found = hashlib.sha256()
    elif re.fullmatch(r"[0-9a-f]{40}", blob.name):
        found = hashlib.sha1(f"blob {blob.stat().st_size}\0".encode(), usedforsecurity=False)
    else:
        return
    with blob.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            found.update(chunk)
    if found.hexdigest() == blob.name:
        return
    path.unlink()
    blob.unlink(missing_ok=True)
    raise ModelFilesError(
        f"{path.name} was damaged on its way: its checksum is {found.hexdigest()}, the hub's is"
        f" {blob.name}; it is removed, so that the next start downloads it again"
    )
