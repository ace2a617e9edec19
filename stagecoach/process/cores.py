"""How many cores of this machine a process may compute with."""

import math
import os
from pathlib import Path

_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_CPU_TOPOLOGY = "/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"


def num_cores() -> int:
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
