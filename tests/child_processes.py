"""The processes that a test started: those below this one, but for what later tests use as well."""

import psutil

kept_ids: set[int] = set()
"""Process ids of those that are kept for later tests."""


def children(*, recursive: bool = False) -> list[psutil.Process]:
    """Those of the test; with `recursive`, the ones below them too."""
    ours = [child for child in psutil.Process().children() if child.pid not in kept_ids]
    if recursive:
        ours += [below for child in ours for below in _below(child)]
    return ours


def _below(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:  # it has ended meanwhile
        return []
