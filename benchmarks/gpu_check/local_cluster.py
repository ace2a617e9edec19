"""Clusters of real processes on the one device, as `coordinator-cli up` starts them."""

from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.cluster import running_cluster
from benchmarks.gpu_check.subject import Subject

_CPU_FLAGS = ("--kv-memory", "128MiB", "--threads", "1")
"""The CPU's memory and cores are not the stages' alone."""


@contextmanager
def cluster_on(subject: Subject, model: str, *, num_stages: int, dtype: str) -> Iterator[str]:
    """Starts stages and a coordinator; yields the coordinator's address.

    Several stages share a card, each by `--device-share`, and profile their part of its memory.

    Args:
        subject: Has the device.
        model: As `--model` takes it.
        num_stages: Stage servers.
        dtype: Of the weights.

    Raises:
        SystemExit: It did not start; the message is the end of its log.
    """
    flags = ["--device", subject.chosen.name, "--no-http"]
    flags += [] if subject.is_card else _CPU_FLAGS
    with running_cluster(model, num_stages=num_stages, dtype=dtype, flags=flags) as address:
        yield address
