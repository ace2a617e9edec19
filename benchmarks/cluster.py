"""A whole cluster on this machine for the time of a benchmark, started as a user would."""

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

STOP_TIMEOUT_S = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Doors:
    """A coordinator that is ready."""

    grpc: str
    """HOST:PORT."""
    http: str
    """HOST:PORT."""
    pid: int


@contextmanager
def running_cluster(
    model: str,
    *,
    num_stages: int = 3,
    dtype: str = "float16",
    prefix_cache: bool = False,
    flags: Sequence[str] = (),
) -> Iterator[str]:
    """As `running_doors`, for what needs no more than the gRPC door.

    Yields:
        HOST:PORT of the coordinator, ready.
    """
    with running_doors(
        model, num_stages=num_stages, dtype=dtype, prefix_cache=prefix_cache, flags=flags
    ) as doors:
        yield doors.grpc


@contextmanager
def running_doors(
    model: str,
    *,
    num_stages: int = 3,
    dtype: str = "float16",
    prefix_cache: bool = False,
    flags: Sequence[str] = (),
) -> Iterator[Doors]:
    """Starts `coordinator-cli up` and stops it at the end of the block.

    Args:
        model: As `--model` takes it.
        num_stages: Stage servers.
        dtype: As `--dtype` takes it.
        prefix_cache: Whether repeats of a prompt may be answered faster.
        flags: Further flags of `up`.

    Yields:
        Where the coordinator can be reached, ready.

    Raises:
        SystemExit: The cluster did not start; the message is the end of its log.
    """
    command = [sys.executable, "-m", "coordinator.cli", "up", "--model", model]
    command += ["--stages", str(num_stages), "--dtype", dtype, "--grpc-port", "0", "--json", *flags]
    command += ["--prefix-cache" if prefix_cache else "--no-prefix-cache"]
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as cluster,
    ):
        assert cluster.stdout is not None
        try:
            ready = cluster.stdout.readline()
            if not ready:
                log.seek(0)
                sys.exit(f"the cluster did not start: {log.read()[-2000:]}")
            found = json.loads(ready)
            yield Doors(grpc=found["grpc"], http=found["http"], pid=found["pid"])
        finally:
            cluster.send_signal(signal.SIGTERM)
            try:
                cluster.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                cluster.kill()
