"""Measures how fast a device reads its memory: the roof that decoding is compared with."""

import time
from collections.abc import Callable
from statistics import median

import torch

_NUM_RUNS = 20


def read_bytes_per_s(device: torch.device, num_bytes: int) -> float:
    """Measures the bandwidth of the device's memory.

    The larger of two: of a sum, which only reads, and of a copy, which reads and writes. Nothing
    that decoding does is likely to be faster.

    Args:
        device: CUDA or the CPU.
        num_bytes: Of each of two tensors, much larger than any cache.
    """
    source, target = torch.ones(2, num_bytes // 4, device=device).unbind()
    sum_s = _seconds(source.sum, device)
    copy_s = _seconds(lambda: target.copy_(source), device)
    return max(source.nbytes / sum_s, 2 * source.nbytes / copy_s)


def nominal_bytes_per_s(device: torch.device) -> float | None:
    """What the memory of a card could do at its clock; None where the driver does not say.

    Memory moves two words a clock cycle on each line of its bus.
    """
    properties = torch.cuda.get_device_properties(device)
    lines_bytes = properties.memory_bus_width / 8
    nominal = 2e3 * float(properties.memory_clock_rate) * lines_bytes  # the rate is in kHz
    return nominal or None


def _seconds(
    run: Callable[[], object], device: torch.device, *, num_runs: int = _NUM_RUNS
) -> float:
    """Median of the seconds that something takes on a device, after one run that warms up.

    Args:
        run: Launches it.
        device: Where.
        num_runs: Counted ones.
    """
    run()
    if device.type != "cuda":
        return median(_host_seconds(run) for _ in range(num_runs))
    times_s = []
    for _ in range(num_runs):
        start, end = (_event() for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        times_s.append(start.elapsed_time(end) / 1e3)
    return float(median(times_s))


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def _host_seconds(run: Callable[[], object]) -> float:
    started_s = time.perf_counter()
    run()
    return time.perf_counter() - started_s
