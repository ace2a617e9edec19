"""Who becomes the parent of processes whose own parent has ended."""

import ctypes

_PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans() -> None:
    """Makes this process the new parent of all below it that lose theirs.

    It has to reap them then. For a process of our own that knows all processes below it. Where the
    first process of a container reaps nothing, they would stay as zombies.
    """
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
