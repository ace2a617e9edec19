"""Python code in a new process that has imported what takes long, but nothing of a hub.

`huggingface_hub` reads the environment when it is imported, so each environment needs a process.
Processes of `stagecoach.process.fork_server` all have that of their server.
"""

import multiprocessing
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

_TIMEOUT_S = 300.0
_IMPORTED = (
    "yaml",
    "httpx2",
    "tqdm",
    "filelock",
    "numpy",
    "gguf",
    "stagecoach.model_files",
)

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(list(_IMPORTED))


def run_code(code: str, environment: Mapping[str, str]) -> str:
    """Runs code as `python -c` does; returns what it printed.

    Args:
        code: Python; ends well, or an assertion shows what it wrote to stderr.
        environment: The whole of its environment.
    """
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder) / name for name in ("stdout", "stderr")]
        for path in outputs:
            path.touch()
        process = _context.Process(target=_run, args=(code, dict(environment), outputs))
        process.start()
        process.join(_TIMEOUT_S)
        process.kill()
        process.join()
        assert process.exitcode == 0, outputs[1].read_text()
        return outputs[0].read_text()


def _run(code: str, environment: Mapping[str, str], outputs: list[Path]) -> None:
    for number, path in enumerate(outputs, start=1):
        with path.open("wb") as file:
            os.dup2(file.fileno(), number)
    os.environ.clear()
    os.environ.update(environment)
    exec(compile(code, "<code>", "exec"), {"__name__": "__main__"})
