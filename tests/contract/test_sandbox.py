"""Processes for what clients send: real ones, which crash, hang and eat memory."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import permutations
from pathlib import Path

import psutil
import pytest

from coordinator.sandbox import (
    CallTimeoutError,
    ForkServer,
    JobError,
    JobPool,
    MemoryLimitError,
    ProcessDiedError,
    ProcessKilledError,
    SandboxProcess,
)
from coordinator.sandbox.frames import FrameKind, FrameReader, encode
from tests.child_processes import children
from tests.open_files import OpenFile, open_files
from tests.orphans import adopted_orphans

ROOT = Path(__file__).resolve().parents[2]
JOBS = "tests.sandbox_jobs"
MIB = 1 << 20


class TidyServer(ForkServer):
    """Closes in the end what it forked."""

    def __init__(self) -> None:
        super().__init__(JOBS, b"7")
        self.forked: list[SandboxProcess] = []

    async def fork(self, *, memory_bytes: int | None = None) -> SandboxProcess:
        process = await super().fork(memory_bytes=memory_bytes)
        self.forked.append(process)
        return process

    async def close(self) -> None:
        for process in self.forked:
            process.close()
        await super().close()


@pytest.fixture
async def server() -> AsyncIterator[ForkServer]:
    server = TidyServer()
    yield server
    await server.close()
    assert children(recursive=True) == []


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - a process tells no event
            await asyncio.sleep(0.02)


def is_gone(process_id: int) -> bool:
    return not psutil.pid_exists(process_id)


async def ask(process: SandboxProcess, call: str, *, timeout_s: float | None = 20.0) -> str:
    return (await process.call(call.encode(), timeout_s=timeout_s)).decode()


async def test_a_process_goes_on_from_the_state_of_its_parent_and_shares_none(
    server: ForkServer,
) -> None:
    first = await server.fork()
    assert await ask(first, "add 3") == "10"
    child = await first.fork()
    assert await ask(child, "add 1") == "11"
    assert await ask(first, "add 2") == "12"
    other = await server.fork()
    assert await ask(other, "add 0") == "7"
    first.close()
    assert await ask(child, "add 1") == "12"
    child.close()
    other.close()


async def test_answers_larger_than_any_buffer_come_whole(server: ForkServer) -> None:
    process = await server.fork()
    text = f"echo 40000 {'x' * 4 * MIB}"
    assert len(await ask(process, text)) == 64 * 40000


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        ("segfault", ProcessDiedError),
        ("overflow", ProcessDiedError),
        ("die", ProcessKilledError),
    ],
)
async def test_a_crash_ends_its_call_alone(
    server: ForkServer, call: str, kind: type[ProcessDiedError]
) -> None:
    victim, other = await server.fork(), await server.fork()
    process_id = int(await ask(victim, "pid"))
    with pytest.raises(ProcessDiedError) as caught:
        await ask(victim, call)
    assert type(caught.value) is kind
    assert not victim.is_alive
    with pytest.raises(ProcessDiedError):
        await ask(victim, "add 1")
    assert await ask(other, "add 1") == "8"
    await until(lambda: is_gone(process_id))


async def test_a_call_that_takes_too_long_is_killed_in_native_code_too(server: ForkServer) -> None:
    process = await server.fork()
    process_id = int(await ask(process, "pid"))
    with pytest.raises(CallTimeoutError, match=r"longer than 0\.2 s"):
        await ask(process, "native", timeout_s=0.2)
    await until(lambda: is_gone(process_id))


async def test_a_process_that_crashes_as_it_begins_leaves_its_parent_alone(
    server: ForkServer,
) -> None:
    """It said its last words on its parent's socket, whose answers were no frames from then on."""
    parent = await server.fork()
    for _ in range(30):
        child = await parent.fork()
        assert child.process_id is not None
        os.kill(child.process_id, signal.SIGSEGV)
        assert await ask(parent, "add 0") == "7"
        with pytest.raises(ProcessDiedError):
            await ask(child, "nap")
    with pytest.raises(ProcessDiedError, match="Segmentation fault"):
        await ask(parent, "segfault")


async def test_one_that_ended_by_its_own_timer_was_not_killed_from_outside(
    server: ForkServer,
) -> None:
    process = await server.fork()
    process_id = int(await ask(process, "pid"))
    answer = process.submit(b"native", timeout_s=0.05)
    # The event loop stands still, so that only the kernel could end the process.
    time.sleep(0.1)  # noqa: ASYNC251
    victim = psutil.Process(process_id)
    victim.send_signal(signal.SIGALRM)
    while not has_ended(victim):
        time.sleep(0.01)  # noqa: ASYNC251
    with pytest.raises(CallTimeoutError):
        await answer


@pytest.mark.parametrize("num_bytes", [0, 1, 5, 6])
def test_part_of_a_frame_is_nobodys_words(num_bytes: int) -> None:
    reader = FrameReader()
    reader.push(encode(FrameKind.DONE, b"a") + encode(FrameKind.DONE, b"answer")[:num_bytes])
    assert reader.next() is not None
    assert reader.next() is None
    assert reader.rest == b""
    words = FrameReader()
    words.push(b"Fatal Python error")
    assert words.next() is None
    assert words.rest == b"Fatal Python error"


async def test_to_give_up_the_wait_is_to_kill_the_process(server: ForkServer) -> None:
    process = await server.fork()
    process_id = int(await ask(process, "pid"))
    calling = asyncio.create_task(ask(process, "native"))
    await asyncio.sleep(0.05)
    calling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await calling
    await until(lambda: is_gone(process_id))


async def test_closing_kills_whatever_the_process_does(server: ForkServer) -> None:
    process = await server.fork()
    process_id = int(await ask(process, "pid"))
    calling = asyncio.create_task(ask(process, "native"))
    await asyncio.sleep(0.05)
    process.close()
    with pytest.raises(ProcessDiedError, match="closed"):
        await calling
    await until(lambda: is_gone(process_id))


async def test_memory_is_bounded_by_what_a_process_adds(server: ForkServer) -> None:
    greedy = await server.fork(memory_bytes=64 * MIB)
    assert await ask(greedy, f"eat {32 * MIB}") == "7"
    with pytest.raises(MemoryLimitError):
        await ask(greedy, f"eat {64 * MIB}")
    child = await greedy.fork(memory_bytes=64 * MIB)
    assert await ask(child, f"eat {48 * MIB}") == "7"
    with pytest.raises(MemoryLimitError):  # as native code does that is denied memory
        await ask(child, "abort")
    assert not child.is_alive


async def test_a_bug_in_a_job_is_told_and_the_process_lives(server: ForkServer) -> None:
    process = await server.fork()
    with pytest.raises(JobError, match="ValueError: of this kind"):
        await ask(process, "raise of this kind")
    assert await ask(process, "print") == "7"


async def test_a_job_that_cannot_be_prepared_is_told_every_time() -> None:
    server = ForkServer(JOBS, b"broken")
    for _ in range(2):
        with pytest.raises(JobError, match="cannot be prepared"):
            await server.fork()
    await server.close()


async def test_the_server_is_started_again_and_what_it_forked_lives_on(
    server: ForkServer,
) -> None:
    old = await server.fork()
    (root,) = children()
    root.kill()
    await until(lambda: not root.is_running() or root.status() == psutil.STATUS_ZOMBIE)
    new = await server.fork()
    assert await ask(new, "add 1") == "8"
    assert await ask(old, "add 2") == "9"
    old.close()


@pytest.fixture
def orphans_adopted() -> Iterator[None]:
    with adopted_orphans():
        yield


@pytest.mark.usefixtures("orphans_adopted")
@pytest.mark.parametrize("order", list(permutations(("root", "child", "grandchild"))), ids="-".join)
@pytest.mark.parametrize("waits", [True, False], ids=["in turn", "at once"])
async def test_whatever_dies_first_leaves_no_zombie(
    server: ForkServer, order: tuple[str, ...], waits: bool
) -> None:
    child = await server.fork()
    grandchild = await child.fork()
    (root,) = children()
    processes = {
        "root": root,
        "child": psutil.Process(child.process_id),
        "grandchild": psutil.Process(grandchild.process_id),
    }
    for name in order:
        processes[name].kill()
        if waits:
            await until(partial(has_ended, processes[name]))
    await until(lambda: children(recursive=True) == [])


@pytest.mark.usefixtures("orphans_adopted")
async def test_a_process_of_which_nobody_has_heard_yet_leaves_no_zombie(
    server: ForkServer,
) -> None:
    child = await server.fork()
    (root,) = children()
    forking = [asyncio.create_task(child.fork()) for _ in range(20)]
    await asyncio.sleep(0)
    while len(root.children(recursive=True)) < 3:
        time.sleep(0.001)  # noqa: ASYNC251 - so that nothing is heard of it
    for process in (root, psutil.Process(child.process_id)):
        process.kill()
    for forked in await asyncio.gather(*forking, return_exceptions=True):
        if isinstance(forked, SandboxProcess):
            forked.close()
    await until(lambda: children(recursive=True) == [])


def has_ended(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


async def test_signals_of_a_terminal_and_of_a_service_manager_disturb_nothing(
    server: ForkServer,
) -> None:
    process = await server.fork()
    for victim in children(recursive=True):
        victim.send_signal(signal.SIGINT)
        victim.send_signal(signal.SIGTERM)
        victim.send_signal(signal.SIGHUP)
    assert await ask(process, "add 1") == "8"
    assert os.getpgid(int(await ask(process, "pid"))) != os.getpgrp()


async def test_hundreds_of_processes_come_and_go_and_leave_nothing(server: ForkServer) -> None:
    await server.start()
    (root,) = children()
    before = open_files(), open_files(root.pid)
    for _ in range(2):
        processes = await asyncio.gather(*(server.fork() for _ in range(150)))
        answers = await asyncio.gather(*(ask(one, f"add {i}") for i, one in enumerate(processes)))
        assert answers == [str(7 + i) for i in range(150)]
        assert {await ask(one, "fds") for one in (processes[0], processes[-1])} == {
            await ask(processes[70], "fds")
        }
        for one in processes:
            one.close()
        await until(lambda: root.children(recursive=True) == [])

    def left_open() -> list[OpenFile]:
        return [*(open_files() - before[0]), *(open_files(root.pid) - before[1])]

    with suppress(TimeoutError):  # one is closed when the loop hears that its process has ended
        await until(lambda: left_open() == [])
    assert left_open() == []


async def test_closing_the_server_ends_all_at_once() -> None:
    server = TidyServer()
    processes = [await server.fork() for _ in range(3)]
    calling = asyncio.create_task(ask(processes[0], "native"))
    await asyncio.sleep(0.05)
    await ForkServer.close(server)
    with pytest.raises(ProcessDiedError):
        await calling
    await server.close()
    assert children(recursive=True) == []
    with pytest.raises(ProcessDiedError, match="closed"):
        await server.fork()


PARENT = f"""
import asyncio
from coordinator.sandbox import ForkServer

async def main():
    server = ForkServer({JOBS!r}, b"7")
    idle, busy = await server.fork(), await server.fork()
    child = await idle.fork()
    print(*[one.process_id for one in (idle, busy, child)], flush=True)
    await busy.call(b"native", timeout_s=600.0)

asyncio.run(main())
"""


async def test_nothing_outlives_a_parent_that_is_killed() -> None:
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PARENT, stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    process_ids = [int(word) for word in (await parent.stdout.readline()).split()]
    assert len(process_ids) == 3
    process_ids.append(psutil.Process(process_ids[0]).ppid())
    await asyncio.sleep(0.2)
    parent.kill()
    await parent.wait()
    await until(lambda: all(is_gone(process_id) for process_id in process_ids))


async def test_a_paused_process_goes_on_when_it_may(server: ForkServer) -> None:
    process = await server.fork()
    process.yield_cpu()
    assert process.process_id is not None
    assert psutil.Process(process.process_id).nice() == 19
    process.pause()
    calling = asyncio.create_task(ask(process, "add 1"))
    assert await asyncio.wait({calling}, timeout=0.2) == (set(), {calling})
    process.resume()
    assert await calling == "8"


async def test_a_pool_uses_its_processes_again_and_never_has_more(server: ForkServer) -> None:
    pool = JobPool(server, max_processes=2, max_waiting=100)
    answers = await asyncio.gather(*(pool.run(b"pid", timeout_s=20.0) for _ in range(20)))
    assert len(set(answers)) <= 2
    pool.close()


async def test_a_pool_replaces_what_crashed_and_what_ran_over(server: ForkServer) -> None:
    pool = JobPool(server, max_processes=1, max_waiting=10, memory_bytes=64 * MIB)
    for call, error in (
        ("segfault", ProcessDiedError),
        ("native", CallTimeoutError),
        (f"eat {128 * MIB}", MemoryLimitError),
        ("raise it", JobError),
    ):
        with pytest.raises(error):
            await pool.run(call.encode(), timeout_s=0.3)
        assert await pool.run(b"add 1", timeout_s=20.0) == b"8"
        with suppress(ProcessDiedError):
            await pool.run(b"die", timeout_s=20.0)
    pool.close()


async def test_a_pool_runs_a_job_again_whose_process_is_killed(server: ForkServer) -> None:
    pool = JobPool(server, max_processes=2, max_waiting=10)
    process_ids = set(await asyncio.gather(*(pool.run(b"pid", timeout_s=20.0) for _ in range(8))))
    for process_id in process_ids:
        os.kill(int(process_id), signal.SIGKILL)
    assert await pool.run(b"pid", timeout_s=20.0) not in process_ids
    running = [asyncio.create_task(pool.run(b"nap", timeout_s=20.0)) for _ in range(2)]
    (root,) = children()
    await until(lambda: len(root.children()) == 2)
    for process in [*root.children(), root]:
        process.kill()
    assert await asyncio.gather(*running) == [b"7", b"7"]
    with pytest.raises(ProcessKilledError):
        await pool.run(b"die", timeout_s=20.0)
    pool.close()


async def test_a_pool_refuses_what_would_wait_too_long_and_ends_with_its_jobs(
    server: ForkServer,
) -> None:
    pool = JobPool(server, max_processes=1, max_waiting=1)
    assert await pool.run(b"add 1", timeout_s=20.0) == b"8"
    running = asyncio.create_task(pool.run(b"native", timeout_s=20.0))
    await asyncio.sleep(0.05)
    waiting = asyncio.create_task(pool.run(b"add 1", timeout_s=20.0))
    await asyncio.sleep(0.05)
    assert pool.is_full
    with pytest.raises(asyncio.QueueFull):
        await pool.run(b"add 1", timeout_s=20.0)
    pool.close()
    results = await asyncio.gather(running, waiting, return_exceptions=True)
    assert [type(result) for result in results] == [ProcessDiedError, ProcessDiedError]


_COUNTS_FORKS = """
import asyncio, ctypes
import uvloop
from coordinator.sandbox import ForkServer

num_forks = 0

@ctypes.CFUNCTYPE(None)
def count():
    global num_forks
    num_forks += 1

# What gRPC's core registers its own handlers with.
assert ctypes.CDLL(None)["__register_atfork"](count, None, None, None) == 0

async def main():
    server = ForkServer("tests.sandbox_jobs", b"7")
    process = await server.fork()
    assert await process.call(b"add 3", timeout_s=20) == b"10"
    process.close()
    await server.close()

uvloop.run(main())
print(num_forks)
"""


def test_no_handler_of_forks_ever_runs_in_the_process_that_serves() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _COUNTS_FORKS], cwd=ROOT, capture_output=True, check=True
    )
    assert done.stdout == b"0\n"
