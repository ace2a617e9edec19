"""How many CPU threads a stage computes with, and how its idle ones wait.

Several stages often share one machine, and only one of them is busy at a time. By default, OpenMP
threads spin for milliseconds after each parallel region, and take the cores from the busy stage.
Here idle threads soon sleep, unless the user says otherwise.
"""

import math
import os
from pathlib import Path

_PASSIVE_WAITING = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "20000"}
"""Spins for some tens of microseconds, which spans the Python between two operations of a busy
stage, and then sleeps. Measured on two cores with three stages: a fifth faster than no spinning,
and with fifteen times as many spins idle stages took the cores of the busy one."""

_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_CPU_TOPOLOGY = "/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"


def wait_passively() -> None:
    """Sets the environment of OpenMP; takes effect only before torch is imported.

    A variable that the user has set stays, and then none is changed: they belong together.
    """
    if not _PASSIVE_WAITING.keys() & os.environ.keys():
        os.environ.update(_PASSIVE_WAITING)


def default_num_threads() -> int:
    """Counts the physical cores that this process may use; at least 1.

    Honours the affinity mask and the CPU quota of a container (cgroup v2).
    """
    cores = {_core_of(cpu) for cpu in os.sched_getaffinity(0)}
    return max(1, min(len(cores), _quota_cpus()))


def _core_of(cpu: int) -> str:
    """Names the physical core of a logical CPU by its list of siblings."""
    try:
        return Path(_CPU_TOPOLOGY.format(cpu=cpu)).read_text().strip()
    except OSError:
        return str(cpu)


def _quota_cpus() -> int:
    """Reads the container's quota, in whole CPUs; as good as unlimited when there is none."""
    try:
        quota, period = _CPU_QUOTA.read_text().split()
    except OSError:
        return os.cpu_count() or 1
    return os.cpu_count() or 1 if quota == "max" else math.ceil(int(quota) / int(period))
