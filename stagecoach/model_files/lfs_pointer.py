"""Files that git left in the place of large ones: https://github.com/git-lfs/git-lfs."""

from stagecoach.contract.errors import ModelFilesError

LFS_BEGINNING = b"version https://git-lfs"


def refuse_lfs_pointer(name: str, beginning: bytes) -> None:
    """Checks that a file is not the pointer to one.

    Args:
        name: Name of the file.
        beginning: First bytes of the file, as many as `LFS_BEGINNING` has.

    Raises:
        ModelFilesError: It is; says how to get the file.
    """
    if beginning.startswith(LFS_BEGINNING):
        raise ModelFilesError(
            f"{name} is not here, only its pointer of git LFS: fetch it with `git lfs pull`, or "
            "name the model by its hub id"
        )
