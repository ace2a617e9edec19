"""Threads: how many by default, and how idle ones wait."""

import os
from pathlib import Path

import pytest

from stage_server.compute import threads
from stagecoach.process import cores


def test_the_default_is_at_least_one_and_at_most_the_cpus_that_may_be_used() -> None:
    assert 1 <= cores.num_cores() <= len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("quota", "expected"), [("max 100000", 4), ("150000 100000", 2), ("50000 100000", 1)]
)
def test_a_containers_quota_limits_the_default(
    quota: str, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "cpu.max"
    file.write_text(quota + "\n")
    monkeypatch.setattr(cores, "_CPU_QUOTA", file)
    monkeypatch.setattr(cores, "_CPU_TOPOLOGY", str(tmp_path / "none{cpu}"))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1, 2, 3})
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert cores.num_cores() == expected


def test_two_hardware_threads_of_one_core_count_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for cpu, siblings in enumerate(["0,2", "1,3", "0,2", "1,3"]):
        (tmp_path / f"cpu{cpu}").write_text(siblings + "\n")
    monkeypatch.setattr(cores, "_CPU_QUOTA", tmp_path / "none")
    monkeypatch.setattr(cores, "_CPU_TOPOLOGY", str(tmp_path / "cpu{cpu}"))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1, 2, 3})
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    assert cores.num_cores() == 2


def test_idle_threads_wait_passively_unless_the_user_decided(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    environment: dict[str, str] = {}
    monkeypatch.setattr(os, "environ", environment)
    threads.wait_passively()
    assert environment == {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "20000"}

    environment.clear()
    environment["OMP_WAIT_POLICY"] = "active"
    threads.wait_passively()
    assert environment == {"OMP_WAIT_POLICY": "active"}
