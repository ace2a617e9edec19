"""What may become of a call in a sandbox.

No errors of `protos`: only the caller knows whose fault it is, and which field to name. For work on
what a client sent, `ClientJobs` makes them.
"""


class SandboxError(Exception):
    """The call brought no answer."""


class ProcessDiedError(SandboxError):
    """The process crashed, was killed, or was closed; or none could be started."""


class CallTimeoutError(SandboxError):
    """The call took longer than it was allowed, and its process was killed."""


class MemoryLimitError(SandboxError):
    """The call wanted more memory than its process may hold."""


class JobError(SandboxError):
    """The job raised an exception that it does not handle: a bug of ours. Its process lives."""
