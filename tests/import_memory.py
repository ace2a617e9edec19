"""What a process holds of memory before it does anything: the libraries that it imports.

It depends on the machine: torch's CUDA build alone holds twice what its CPU build does. So a bound
on a stage's memory is a bound on what it adds to its imports, which are measured where it runs.
"""

import functools
import re
import subprocess
import sys

STAGE_MODULES = (
    "stage_server.process.command",
    "stage_server.process.server",
    "stage_server.compute.torch_engine",
)
"""What a stage of a Llama has imported once it is ready."""

_MEASURE = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
print(open("/proc/self/status").read())
"""

RUN_MEASURED = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
print(code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
"""Runs a command and prints its exit code and peak in KiB. In a small process of its own, because
what a process held before it became another program counts for that one too."""


@functools.cache
def import_bytes(*modules: str) -> int:
    """The most resident memory of a process that has imported these modules, before its end."""
    command = [sys.executable, "-c", _MEASURE, *modules]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return peak_bytes(done.stdout)


@functools.cache
def import_and_end_bytes(*modules: str) -> int:
    """The same to its very end: libraries touch more of themselves when they are taken down."""
    command = [sys.executable, "-c", RUN_MEASURED, sys.executable, "-c", _MEASURE, *modules]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    code, peak_kib = map(int, done.stdout.split())
    assert code == 0
    return peak_kib * 1024


def peak_bytes(status: str) -> int:
    """The most resident memory that a process ever had.

    Args:
        status: What its /proc/PID/status says.
    """
    match = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    assert match is not None
    return int(match[1]) * 1024
