"""What every test run shares: thread counts, signals, logging and one hypothesis profile."""

import functools
import gc
import logging
import os
import signal
from collections.abc import Iterator

import httpcore2
import pytest
from hypothesis import settings

from stagecoach.telemetry.logs import LogHandler

# Before torch is imported: tests share few cores, and spinning OpenMP threads cost whole slices.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Requests outlast the restart of a stage, however long it takes, unless a test says otherwise.
os.environ.setdefault("STAGECOACH_STAGE_WAIT_S", "300")
# Stages of the tests' models need little, and touch every page of it as they start.
os.environ.setdefault("STAGECOACH_KV_MEMORY", "64MiB")
# What a test compares with is computed on the CPU, and a stage refuses a card that it cannot use.
os.environ["CUDA_VISIBLE_DEVICES"] = ""

# What people's shells seldom have: commands of the tests write as theirs do.
os.environ.pop("PYTHONUNBUFFERED", None)

# In the background of a shell it is ignored, and what the tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
# So is SIGHUP under `nohup`. A handler is not inherited, and keeps this process alive as well.
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)

# Made once: it reads the authorities of the whole internet, 70 ms for each client.
httpcore2.default_ssl_context = functools.cache(httpcore2.default_ssl_context)

# No deadline: an example's time says nothing on a busy machine.
settings.register_profile("stagecoach", deadline=None, print_blob=True)
settings.load_profile("stagecoach")


# What is collected stays to the end: to look through it for garbage took a fifth of the time.
gc.disable()


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()
    gc.enable()


def pytest_xdist_auto_num_workers() -> int:
    """One process more than cores: each waits a third of its time for processes that start."""
    return len(os.sched_getaffinity(0)) + 1


class FailuresAtOnce:
    """Says of each failure at once, in a line, what failed.

    pytest says it in the end, and not at all of a run that a crash ended.
    """

    def __init__(self, terminal: pytest.TerminalReporter) -> None:
        self._terminal = terminal

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            message = report.longreprtext if crash is None else crash.message
            reason = " ".join(message.split())[:300]
            self._terminal.write_line(f"\nFAILED at {report.when}: {report.nodeid} - {reason}")


@pytest.hookimpl(trylast=True)  # the terminal reporter is made first
def pytest_configure(config: pytest.Config) -> None:
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    if terminal is not None:  # none in a process of xdist's
        config.pluginmanager.register(FailuresAtOnce(terminal))


@pytest.fixture(autouse=True)
def _own_logging() -> Iterator[None]:
    """Undoes the logging of a command that a test runs in its own process."""
    root = logging.getLogger()
    level = root.level
    yield
    root.setLevel(level)
    for handler in root.handlers:
        if isinstance(handler, LogHandler):
            root.removeHandler(handler)
