"""What may become of a call in a sandbox.

No errors of `protos`: only the caller knows whose fault it is, and which field to name. For work on
what a client sent, `ClientJobs` makes them.
"""


class SandboxError(Exception):
    """The call brought no answer."""


class ProcessDiedError(SandboxError):
    """The process crashed, or none could be started."""


class ProcessKilledError(ProcessDiedError):
    """The process was killed from outside, or closed, or ended while it only had to fork.

    One that crashes at its work says of what. The kernel, when memory is short, and an operator let
    it say nothing: the same call may well succeed in another process, see `unless_killed`.
    """


class CallTimeoutError(SandboxError):
    """The call took longer than it was allowed, and its process was killed."""


class MemoryLimitError(SandboxError):
    """The call wanted more memory than its process may hold."""


class JobError(SandboxError):
    """The job raised an exception that it does not handle: a bug of ours. Its process lives."""
