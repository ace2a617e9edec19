"""The check of a card on the CPU, as far as it needs no cluster; the rest is in `tests/faults`."""

from typing import Any

import pytest

from tests.gpu_checks import check_cpu, rows_of

pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return check_cpu(tmp_path_factory.mktemp("gpu-check"), "parity,shortage")


def test_it_passes_and_says_that_it_is_of_a_cpu_and_not_whole(report: dict[str, Any]) -> None:
    assert report["whole"] is False
    assert report["facts"]["device"] == "cpu"
    assert report["facts"]["attention"].startswith("gather, ")
    assert [check["check"] for check in report["checks"]] == ["device", "parity", "shortage"]
    verdicts = {row["verdict"] for row in rows_of(report, "device").values()}
    assert verdicts == {"not judged on a CPU"}


def test_models_are_compared_in_every_dtype(report: dict[str, Any]) -> None:
    rows = rows_of(report, "parity")
    by_kernels = rows.pop("tiny models that run by kernels")
    assert (by_kernels["figure"], by_kernels["verdict"]) == (0, "not judged on a CPU")
    assert rows.keys() == {
        f"{case} {dtype}"
        for case in ("llama-gqa-tied", "gemma2")
        for dtype in ("float32", "float16", "bfloat16")
    }
    assert all(row["verdict"] == "pass" and row["figure"] > 0 for row in rows.values())


def test_memory_runs_out_for_real(report: dict[str, Any]) -> None:
    rows = rows_of(report, "shortage")
    assert rows["with little left: times that a part was halved"]["figure"] >= 1
    assert {row["verdict"] for row in rows.values()} == {"pass"}
