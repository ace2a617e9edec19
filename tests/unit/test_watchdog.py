"""When a model thread counts as hung, and what a failed computation says of its device."""

import weakref

import pytest
import torch

from stage_server.compute.device_failures import device_failures
from stage_server.compute.executor import RunningJob
from stage_server.core.engine import DeviceLostError
from stage_server.process.watchdog import (
    EXIT_FACTOR,
    PERIOD_S,
    TIMEOUT_PER_TOKEN_S,
    JobMeter,
    Verdict,
)
from stagecoach.contract.errors import DeviceMemoryError

TIMEOUT_S = 10.0
CPU = torch.device("cpu")


def seconds_until(verdict: Verdict, job: RunningJob | None, *, limit_s: float) -> float | None:
    """How long one and the same job runs until it is judged so; None when it never is."""
    meter, now_s = JobMeter(TIMEOUT_S), 1000.0
    meter.look(job, now_s)
    for tick in range(1, int(limit_s / PERIOD_S)):
        if meter.look(job, now_s + tick * PERIOD_S) is verdict:
            return tick * PERIOD_S
    return None


@pytest.mark.parametrize("num_tokens", [0, 1, 400])
def test_a_job_that_runs_too_long_for_its_tokens_hangs_and_then_is_lost(num_tokens: int) -> None:
    job = RunningJob(7, num_tokens)
    timeout_s = TIMEOUT_S + num_tokens * TIMEOUT_PER_TOKEN_S
    hung_s = seconds_until(Verdict.HANGS, job, limit_s=1000)
    lost_s = seconds_until(Verdict.IS_LOST, job, limit_s=1000)
    assert hung_s == timeout_s + PERIOD_S
    assert lost_s == EXIT_FACTOR * timeout_s + PERIOD_S


def test_a_thread_without_work_never_hangs() -> None:
    assert seconds_until(Verdict.HANGS, None, limit_s=1000) is None


def test_one_job_after_another_is_work_however_long_it_goes_on() -> None:
    meter = JobMeter(TIMEOUT_S)
    for tick in range(1000):
        job = RunningJob(tick // 30, 1)
        assert meter.look(job, tick * PERIOD_S) is Verdict.WORKS


def test_time_in_which_the_process_was_stopped_does_not_count() -> None:
    meter, job = JobMeter(TIMEOUT_S), RunningJob(1, 1)
    meter.look(job, 0.0)
    assert meter.look(job, 3600.0) is Verdict.WORKS
    assert meter.look(None, 3600.0 + PERIOD_S) is Verdict.WORKS


def accelerator_error(code: int) -> torch.AcceleratorError:
    """What torch raises of itself, with the code of CUDA's error."""
    error = torch.AcceleratorError(f"CUDA error: {code}")
    error.error_code = code  # type: ignore[attr-defined]
    return error


@pytest.mark.parametrize(
    ("raised", "named"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), DeviceMemoryError),
        (MemoryError(), DeviceMemoryError),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"), DeviceMemoryError),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), DeviceMemoryError),
        (RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when"), DeviceMemoryError),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"), RuntimeError),
        (accelerator_error(2), DeviceMemoryError),
        (accelerator_error(700), DeviceLostError),
        (torch.AcceleratorError("an illegal memory access"), DeviceLostError),
        (RuntimeError("a bug"), RuntimeError),
        (ValueError("another"), ValueError),
    ],
)
def test_failures_of_the_device_are_told_from_bugs(
    raised: Exception, named: type[Exception]
) -> None:
    with pytest.raises(Exception) as caught, device_failures(CPU):  # noqa: PT011
        raise raised
    assert type(caught.value) is named


def test_out_of_memory_lets_go_of_what_was_computed_before_it_tidies_up() -> None:
    """The exception's traceback held the activations, and there was nothing to give back."""
    alive: list[weakref.ref[torch.Tensor]] = []

    def compute() -> None:
        activations = torch.zeros(3)
        alive.append(weakref.ref(activations))
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(DeviceMemoryError) as caught, device_failures(CPU):
        compute()
    assert caught.value.__cause__ is not None
    assert alive[0]() is None


@pytest.mark.parametrize(
    "error",
    [torch.AcceleratorError("unspecified launch failure"), RuntimeError("whatever it says")],
)
def test_a_card_that_does_not_even_synchronize_is_lost_whatever_it_says(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(_device: torch.device) -> None:
        raise error

    monkeypatch.setattr(torch.cuda, "synchronize", fail)
    for raised in (torch.OutOfMemoryError("CUDA out of memory"), ValueError("a bug")):
        with pytest.raises(DeviceLostError), device_failures(torch.device("cuda:0")):
            raise raised
