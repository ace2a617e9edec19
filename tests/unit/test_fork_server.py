"""What a forked process is: as if it had been started, but for its imports."""

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from coordinator.cli.cluster import stage_forks
from coordinator.cli.cluster.stage_forks import StageForks
from stagecoach.contract.errors import UnavailableError
from tests.open_files import open_files
from tests.orphans import adopted_orphans

PROGRAM = """
import os, signal, sys
if __name__ == "__main__":
    print(sys.argv, os.getpgrp() == os.getpid(), os.getppid(), len(os.listdir("/proc/self/fd")))
    print([signal.getsignal(number).name for number in (signal.SIGTERM, signal.SIGHUP)])
    print(signal.getsignal(signal.SIGINT).__name__, "imported" in sys.modules, flush=True)
    if sys.argv[1] == "wait":
        sys.stdin.read()
    sys.exit(f"ends with {sys.argv[1]}" if sys.argv[1] == "words" else int(sys.argv[1]))
"""


@pytest.fixture
def forks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], StageForks]]:
    """Makes them for a program of ours, whose fork server has imported one module."""
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "imported.py").write_text("def prepare(): pass\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(tmp_path), os.getcwd())))
    monkeypatch.setattr(stage_forks, "_PREPARE", "imported:prepare")
    monkeypatch.setattr(stage_forks, "_MODULE", "program")
    before = children()
    with adopted_orphans():
        yield StageForks
        left = children() - before
        for process in left:
            process.kill()
            process.wait()
    assert left == set()


def children() -> set[psutil.Process]:
    """Processes below this one; other tests may have some."""
    return set(psutil.Process().children())


async def test_a_fork_is_a_process_of_its_own(forks: Callable[[], StageForks]) -> None:
    ours = forks()
    waiting = await ours.start(["wait"])
    assert await waiting.stdout.readline() != b""  # it is what it is to be from now on
    assert psutil.Process(waiting.pid).name() == "program"
    for argument, code, words in (("3", 3, b""), ("words", 1, b"ends with words\n")):
        process = await ours.start([argument])
        # Its streams, and the folder that it reads.
        said = (await process.stdout.readline()).decode()
        assert said.endswith(f"program.py', '{argument}'] True {os.getpid()} 4\n")
        assert await process.stdout.readline() == b"['SIG_DFL', 'SIG_DFL']\n"
        assert await process.stdout.readline() == b"default_int_handler True\n"
        assert await process.wait() == process.returncode == code
        assert await process.stderr.read() == words
        process.terminate()  # of a process that is gone: nothing
    await ours.close()
    assert waiting.returncode is None  # it does not need the fork server any more
    waiting.terminate()
    assert await waiting.wait() == -signal.SIGTERM
    await ours.close()


async def test_forks_that_are_asked_for_at_once_all_come(forks: Callable[[], StageForks]) -> None:
    ours = forks()
    processes = await asyncio.gather(*(ours.start([str(code)]) for code in range(8)))
    assert [await process.wait() for process in processes] == list(range(8))
    await ours.close()


async def test_what_forks_is_started_again_and_nothing_of_it_is_kept(
    forks: Callable[[], StageForks],
) -> None:
    files, others = {file.target for file in open_files()}, children()
    ours = forks()
    first = await ours.start(["wait"])
    (server,) = (child for child in children() - others if child.pid != first.pid)
    server.kill()
    second = await ours.start(["0"])
    first.kill()
    assert await first.wait() == -signal.SIGKILL
    assert await second.wait() == 0
    await ours.close()
    for process in (first, second):
        await process.stdout.read()
        await process.stderr.read()
    await asyncio.sleep(0)  # pipes are closed in the next turn
    assert {file.target for file in open_files()} <= files


async def test_what_is_not_installed_is_named(
    forks: Callable[[], StageForks], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage_forks, "_PREPARE", "not_there:prepare")
    with pytest.raises(
        UnavailableError, match="no stage can be started: the package not_there is not installed"
    ):
        await forks().start(["0"])


async def test_a_fork_server_that_is_killed_before_it_serves_is_called_so(
    forks: Callable[[], StageForks], tmp_path: Path
) -> None:
    (tmp_path / "imported.py").write_text("def prepare(): import os; os.kill(os.getpid(), 9)\n")
    with pytest.raises(
        UnavailableError, match="no stage can be started: the process that forks them was killed"
    ):
        await forks().start(["0"])


async def test_a_start_that_is_given_up_leaves_nothing(forks: Callable[[], StageForks]) -> None:
    ours = forks()
    starting = asyncio.create_task(ours.start(["wait"]))
    await asyncio.sleep(0)
    starting.cancel()
    await asyncio.wait({starting})
    process = await ours.start(["0"])
    assert await process.wait() == 0
    await ours.close()
