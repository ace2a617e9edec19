"""The peer: llama.cpp over RPC, built from the source package of `llama-cpp-python` on PyPI.

That package holds the sources of `ggml-rpc-server`, `llama-batched-bench` and `llama-quantize`.
Needs cmake and a C++ compiler; the build is kept in a cache folder between runs.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

VERSION = "0.3.36"

_CACHE = Path(tempfile.gettempdir()) / "stagecoach-benchmarks" / f"llama-cpp-{VERSION}"
_TARGETS = ("ggml-rpc-server", "llama-batched-bench", "llama-quantize")
_CMAKE_OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DGGML_RPC=ON",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_SERVER=OFF",
)
_START_TIMEOUT_S = 10
_ATTEMPTS = 3
"""Its log thread now and then loses the last rows when it exits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ThreadSetting:
    """How the CPU threads of an RPC server are used."""

    num_threads: int
    """Of each server."""
    passive: bool
    """True: idle threads sleep at once; False: OpenMP's default, which spins for a while."""

    def __str__(self) -> str:
        """For a table."""
        return f"{self.num_threads} {'passive' if self.passive else 'default'}"

    @property
    def environment(self) -> dict[str, str]:
        """Of the processes."""
        extra = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"} if self.passive else {}
        return {**os.environ, **extra}


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """One run of `llama-batched-bench` at one batch size, in tokens a second."""

    prefill: float
    decode: float


def build() -> Path:
    """Returns the folder of the programs; downloads and compiles when they are missing.

    Raises:
        SystemExit: There is no cmake or no C++ compiler.
    """
    programs = _CACHE / "bin"
    if all((programs / name).exists() for name in _TARGETS):
        return programs
    if not (shutil.which("cmake") and shutil.which("c++")):
        sys.exit("building llama.cpp needs cmake and a C++ compiler: apt-get install cmake g++")
    print("building llama.cpp (minutes the first time)", file=sys.stderr)
    programs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=_CACHE) as folder:
        root = Path(folder)
        package = f"llama-cpp-python=={VERSION}"
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        _run([*pip, "--no-deps", "--no-binary", "llama-cpp-python", "-d", folder, package])
        with tarfile.open(next(root.glob("*.tar.gz"))) as archive:
            archive.extractall(root, filter="data")
        (source,) = root.glob("*/vendor/llama.cpp")
        _run(["cmake", "-S", str(source), "-B", str(root / "build"), *_CMAKE_OPTIONS])
        jobs = str(len(os.sched_getaffinity(0)))
        _run(["cmake", "--build", str(root / "build"), "-j", jobs, "--target", *_TARGETS])
        for name in _TARGETS:
            shutil.copy2(root / "build" / "bin" / name, programs / name)
    return programs


@contextmanager
def running_servers(
    programs: Path, num_servers: int, setting: ThreadSetting
) -> Iterator[Sequence[str]]:
    """Starts RPC servers on loopback and ends them with the block.

    Yields:
        HOST:PORT of each.
    """
    with ExitStack() as stack:
        addresses = []
        for _ in range(num_servers):
            port = _free_port()
            command = [str(programs / "ggml-rpc-server"), "-H", "127.0.0.1", "-p", str(port)]
            command += ["-t", str(setting.num_threads)]
            server = stack.enter_context(
                subprocess.Popen(
                    command,
                    env=setting.environment,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
            )
            stack.callback(server.kill)
            _wait_for(port, server)
            addresses.append(f"127.0.0.1:{port}")
        yield addresses


def batched_bench(
    programs: Path,
    model: Path,
    servers: Sequence[str],
    setting: ThreadSetting,
    *,
    batches: Sequence[int],
    num_prompt_tokens: int,
    num_tokens: int,
) -> dict[int, Speed]:
    """Measures every batch size once, all layers on the servers; by batch size."""
    context = max(batches) * (num_prompt_tokens + num_tokens)
    command = [str(programs / "llama-batched-bench"), "-m", str(model), "--rpc", ",".join(servers)]
    command += ["-ngl", "99", "-c", str(context), "-b", "2048", "-ub", "512"]
    command += ["-t", str(setting.num_threads), "--output-format", "jsonl"]
    command += ["-npp", str(num_prompt_tokens), "-ntg", str(num_tokens)]
    command += ["-npl", ",".join(map(str, batches))]
    for _ in range(_ATTEMPTS):
        output = _run(command, environment=setting.environment)
        # A row may stand behind other output that has no newline of its own.
        rows = [json.loads(row) for row in re.findall(r'{"n_kv_max".*}', output)]
        if {row["pl"] for row in rows} == set(batches):
            break
    else:
        sys.exit(f"llama-batched-bench does not say all of batches {batches}: {output[-2000:]}")
    return {row["pl"]: Speed(prefill=row["speed_pp"], decode=row["speed_tg"]) for row in rows}


def quantized(programs: Path, model: Path, kind: str) -> Path:
    """Returns a GGUF file beside another, which `llama-quantize` makes of it when missing.

    Args:
        programs: What `build` returned.
        model: A GGUF file in float16.
        kind: Such as Q4_0.
    """
    target = model.with_name(f"model-{kind.lower()}.gguf")
    if not target.exists():
        unfinished = target.with_suffix(".unfinished")
        _run([str(programs / "llama-quantize"), str(model), str(unfinished), kind])
        unfinished.rename(target)
    return target


def _run(command: Sequence[str], *, environment: dict[str, str] | None = None) -> str:
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    if result.returncode != 0:
        tail = (result.stdout + result.stderr)[-2000:]
        sys.exit(f"{Path(command[0]).name} ended with exit code {result.returncode}: {tail}")
    return result.stdout


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _wait_for(port: int, server: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline and server.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.05)
    sys.exit("ggml-rpc-server did not start")
