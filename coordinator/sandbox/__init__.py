"""Work for clients in processes that may crash, hang or eat memory without anyone noticing.

    coordinator --- ForkServer: prepares once what is expensive (a vocabulary, a tokenizer)
                        |  forks
                        +-- SandboxProcess: answers calls, each within a time and a memory limit
                                |  forks
                                +-- SandboxProcess: goes on from the state of its parent

The coordinator never forks itself: it has threads. A job is a module of ours, named by its path,
with a function `prepare(payload: bytes) -> Callable[[bytes], bytes]`; calls carry bytes both ways.
A job is expected to catch what it knows can go wrong, and to say so in its answer.
"""

from coordinator.sandbox.attempts import MAX_KILLED, unless_killed
from coordinator.sandbox.client_jobs import ClientJobs, Content
from coordinator.sandbox.errors import (
    CallTimeoutError,
    JobError,
    MemoryLimitError,
    ProcessDiedError,
    ProcessKilledError,
    SandboxError,
)
from coordinator.sandbox.fork_server import ForkServer
from coordinator.sandbox.job_pool import JobPool
from coordinator.sandbox.sandbox_process import SandboxProcess

__all__ = [
    "MAX_KILLED",
    "CallTimeoutError",
    "ClientJobs",
    "Content",
    "ForkServer",
    "JobError",
    "JobPool",
    "MemoryLimitError",
    "ProcessDiedError",
    "ProcessKilledError",
    "SandboxError",
    "SandboxProcess",
    "unless_killed",
]
