"""Python programs in processes of their own, which need not import everything anew.

A process imports what most of them need, and is forked for each: the imports of a program take
longer than most of what is tested. What reads its environment when it is imported must not be
among them.
"""

import importlib
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any, NamedTuple, Self

ROOT = Path(__file__).resolve().parents[1]


class Ended(NamedTuple):
    """How a program ended, and what it printed."""

    returncode: int
    stdout: str
    stderr: str


class ForkedPython:
    """Runs programs, one at a time.

    Args:
        modules: What is imported before them.
    """

    def __init__(self, modules: Sequence[str]) -> None:
        self._modules = modules
        self._lock = Lock()

    def run(self, code: str, environment: Mapping[str, str]) -> Ended:
        """Runs a program to its end.

        Args:
            code: Of the program.
            environment: All of its environment.
        """
        with self._lock, TemporaryDirectory() as folder:
            files = [str(Path(folder, name)) for name in ("stdout", "stderr")]
            asked = {"code": code, "environment": dict(environment), "files": files}
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdin.write(json.dumps(asked) + "\n")
            self._process.stdin.flush()
            returncode = int(self._process.stdout.readline())
            stdout, stderr = (Path(file).read_text() for file in files)
        return Ended(returncode, stdout, stderr)

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.forked_python", *self._modules],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        """Ends it, and a program that runs."""
        os.killpg(self._process.pid, signal.SIGKILL)
        with self._process:
            pass


def _serve() -> None:
    for line in sys.stdin:
        asked = json.loads(line)
        pid = os.fork()
        if pid == 0:
            os._exit(_run(asked))
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _run(asked: Any) -> int:
    """Becomes the program that is asked for; returns its exit code."""
    os.environ.clear()
    os.environ.update(asked["environment"])
    paths = [os.devnull, *asked["files"]]
    for number, flags in enumerate((os.O_RDONLY, *[os.O_WRONLY | os.O_CREAT] * 2)):
        os.dup2(os.open(paths[number], flags), number)
    try:
        exec(compile(asked["code"], "program", "exec"), {"__name__": "__main__"})
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code


if __name__ == "__main__":
    for name in sys.argv[1:]:
        importlib.import_module(name)
    _serve()
