"""What a bench makes of runs: speeds, splits, limits, refusals, and how they are shown."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from coordinator.bench import plot
from coordinator.bench.decode import (
    DecodedRequest,
    decode_tokens_per_s,
    prefill_tokens_per_s,
    time_to_first_token_s,
)
from coordinator.bench.limit import DecodeLimit
from coordinator.bench.plot import check_plot, write_plot
from coordinator.bench.prompts import fixed_prompts
from coordinator.bench.report import print_json, print_tables
from coordinator.bench.result import BenchPlan, BenchResult, BenchRow, Run
from coordinator.bench.sweep import check_fits
from coordinator.bench.time_split import TimeSplit
from stagecoach.client import CoordinatorStatus, StageTotals, StepTotals, Timings
from stagecoach.contract.errors import (
    ContextLengthExceededError,
    IncompatibleError,
    InsufficientMemoryError,
    InvalidArgumentError,
    QueueFullError,
    StagecoachError,
    UnavailableError,
)
from tests.client_statuses import create_status

MS = 1_000_000
PLAN = BenchPlan(batches=(1, 2), prompt_tokens=32, output_tokens=64, repeats=3)
SPLIT = TimeSplit(
    compute=70.0, wire=2.0, serialize=1.0, queue=0.5, schedule=0.1, sample=0.2, other=0.2
)


def create_totals(num_steps: int, *, compute_ms: int) -> StepTotals:
    """Two stages; besides the compute, a step takes 1 ms of each other part of each stage."""
    own_ns = num_steps * MS
    stage = StageTotals(
        queue_ns=own_ns, compute_ns=compute_ms * MS, serialize_ns=own_ns, wire_ns=own_ns
    )
    return StepTotals(
        num_steps=num_steps,
        schedule_ns=own_ns,
        sample_ns=own_ns,
        detokenize_ns=own_ns,
        step_ns=0,
        stages=(stage, stage),
    )


def create_request(
    started_s: float, *arrivals_s: float, prefill_ms: int = 0, decode_ms: int = 0
) -> DecodedRequest:
    """A request of one prefill step, and one decode step for each later token."""
    prefill = create_totals(1, compute_ms=prefill_ms)
    whole = create_totals(len(arrivals_s), compute_ms=prefill_ms + decode_ms)
    return DecodedRequest(
        started_s=started_s,
        arrivals_s=list(arrivals_s),
        timings=Timings(
            queue_ns=0,
            time_to_first_token_ns=0,
            total_ns=0,
            num_steps=whole.num_steps,
            schedule_ns=whole.schedule_ns,
            sample_ns=whole.sample_ns,
            detokenize_ns=whole.detokenize_ns,
            step_ns=0,
            stages=whole.stages,
            num_preemptions=0,
            prefill=prefill,
        ),
    )


def test_the_speed_counts_only_what_came_after_every_request_had_its_first_token() -> None:
    early = create_request(0.0, 1.0, 2.0, 3.0, 4.0)
    late = create_request(0.0, 2.5, 4.5)
    # 3.0, 4.0 and 4.5, in the two seconds since 2.5
    assert decode_tokens_per_s([early, late]) == pytest.approx(3 / 2.0)
    assert decode_tokens_per_s([early]) == pytest.approx(1.0)


def test_tokens_that_all_arrive_at_once_tell_no_speed() -> None:
    with pytest.raises(InvalidArgumentError, match="more are needed to measure a speed"):
        decode_tokens_per_s([create_request(0.0, 1.0, 1.0)])


def test_prefill_is_told_apart() -> None:
    batch = [create_request(0.0, 0.5, 2.0), create_request(0.1, 1.0, 2.0)]
    assert prefill_tokens_per_s(batch, 32) == pytest.approx(64.0)
    assert time_to_first_token_s(batch) == pytest.approx(0.7)


def test_the_split_is_that_of_decode_steps_of_the_request_that_started_last() -> None:
    early = create_request(0.0, 0.1, 0.2, prefill_ms=9, decode_ms=9)
    late = create_request(0.0, 0.3, 0.34, 0.38, prefill_ms=1000, decode_ms=20)
    split = TimeSplit.of([early, late])
    # two decode steps of 40 ms; the stages' own 20 ms are over both
    assert asdict(split) == pytest.approx(
        {
            "compute": 20.0,
            "wire": 2.0,
            "serialize": 2.0,
            "queue": 2.0,
            "schedule": 1.0,
            "sample": 1.0,
            "other": 12.0,
        }
    )
    assert split.total == pytest.approx(40.0)
    assert split.overhead == pytest.approx(20.0)


def create_run(tokens_per_s: float) -> Run:
    return Run(
        tokens_per_s=tokens_per_s,
        time_to_first_token_s=tokens_per_s / 100,
        prefill_tokens_per_s=10 * tokens_per_s,
        split=replace(SPLIT, compute=tokens_per_s),
    )


def test_a_row_has_medians_and_the_spread() -> None:
    row = BenchRow.of(4, [create_run(rate) for rate in (30.0, 10.0, 12.0)], 40.0)
    assert (row.tokens_per_s, row.tokens_per_s_min, row.tokens_per_s_max) == (12.0, 10.0, 30.0)
    assert (row.time_to_first_token_s, row.prefill_tokens_per_s) == (0.12, 120.0)
    assert row.split == replace(SPLIT, compute=12.0)


def test_prompts_are_the_same_every_time_and_differ_between_requests_and_runs() -> None:
    assert fixed_prompts(3, 8) == fixed_prompts(3, 8)
    prompts = [tuple(p) for seed in range(4) for p in fixed_prompts(8, 16, seed=seed)]
    assert len({prompt[:2] for prompt in prompts}) == 32
    assert all(1000 <= token_id < 32000 for prompt in prompts for token_id in prompt)
    small = fixed_prompts(2, 100, vocab_size=10)
    assert all(0 <= token_id < 10 for prompt in small for token_id in prompt)


def emulated_13b(num_stages: int, device: str = "emulated rtx-3060-12gb") -> CoordinatorStatus:
    return create_status(num_stages, device=device, model_id="shape:llama-2-13b")


@pytest.mark.parametrize(
    ("num_stages", "batch", "length", "tokens_per_s"),
    # By weights and KV alone it would be 13.9, 106 and 1 089. With 10 layers on each of 4 stages
    # the head makes the last one the slowest.
    [(3, 1, 2, 13.75), (3, 8, 512, 103.2), (4, 96, 256, 1053.0)],
)
def test_the_limit_is_that_of_the_devices(
    num_stages: int, batch: int, length: int, tokens_per_s: float
) -> None:
    limit = DecodeLimit(emulated_13b(num_stages))
    found = limit.tokens_per_s(batch, prompt_tokens=length - 1, output_tokens=2)
    assert found == pytest.approx(tokens_per_s, rel=0.005)


def test_the_limit_knows_the_efficiency_that_is_emulated() -> None:
    whole = DecodeLimit(emulated_13b(3))
    half = DecodeLimit(emulated_13b(3, "emulated rtx-3060-12gb at efficiency 0.5"))
    one = whole.tokens_per_s(8, prompt_tokens=32, output_tokens=64)
    found = half.tokens_per_s(8, prompt_tokens=32, output_tokens=64)
    # Launches take as long as ever.
    assert one / 2 < found < 1.01 * one / 2


@pytest.mark.parametrize(
    ("device", "model_id"),
    [
        ("cpu", "shape:llama-2-13b"),
        ("emulated abacus", "shape:llama-2-13b"),
        ("emulated t4-16gb", "shape:none"),
    ],
)
def test_no_limit_is_known_for_what_is_real_or_unknown(device: str, model_id: str) -> None:
    with pytest.raises(StagecoachError):
        DecodeLimit(create_status(3, device=device, model_id=model_id))


@pytest.mark.parametrize(
    ("changes", "error", "parts"),
    [
        ({"prompt_tokens": 4090}, ContextLengthExceededError, ("4090 + 64", "4096")),
        ({"batches": (1, 65)}, QueueFullError, ("batch 65", "64")),
        (
            {"batches": (64,), "prompt_tokens": 97},
            InsufficientMemoryError,
            ("batch 64", "640 KV blocks", "600"),
        ),
    ],
)
def test_what_the_cluster_cannot_run_at_once_is_refused_with_the_numbers(
    changes: dict[str, object], error: type[StagecoachError], parts: tuple[str, ...]
) -> None:
    plan = replace(PLAN, **changes)  # type: ignore[arg-type]
    with pytest.raises(error) as caught:
        check_fits(create_status(3), plan)
    for part in parts:
        assert part in caught.value.message


def test_what_just_fits_is_taken_and_a_cluster_that_is_not_ready_is_not() -> None:
    fits = replace(PLAN, batches=(60,), prompt_tokens=97)
    check_fits(create_status(3), fits)
    with pytest.raises(UnavailableError):
        check_fits(create_status(3, ready=False), fits)


def create_result(*, emulated: bool, batches: tuple[int, ...] = (1, 2)) -> BenchResult:
    device = "emulated rtx-3060-12gb" if emulated else "cpu"
    rows = [
        BenchRow.of(batch, [create_run(10.0 * batch)], 12.5 * batch if emulated else None)
        for batch in batches
    ]
    return BenchResult(
        plan=PLAN,
        status=create_status(3, device=device),
        no_limit_reason=None,
        rows=tuple(rows),
    )


@pytest.mark.parametrize("emulated", [False, True])
def test_the_json_is_one_object_with_the_parts_of_a_step(
    emulated: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    print_json(create_result(emulated=emulated))
    answer = json.loads(capsys.readouterr().out)
    assert answer["emulated"] is emulated
    assert [stage["layers"] for stage in answer["stages"]] == [[0, 14], [14, 27], [27, 40]]
    first, second = answer["rows"]
    assert (first["batch"], second["tokens_per_s"]) == (1, 20.0)
    assert first["limit_tokens_per_s"] == (12.5 if emulated else None)
    assert list(first["ms_per_step"]) == [
        "compute",
        "wire",
        "serialize",
        "queue",
        "schedule",
        "sample",
        "other",
    ]


def test_the_table_of_an_emulated_cluster_says_so_and_shows_the_limit(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_tables(create_result(emulated=True))
    emulated = capsys.readouterr().out
    assert "EMULATED" in emulated.splitlines()[0]
    assert "80.0%" in emulated
    print_tables(create_result(emulated=False))
    real = capsys.readouterr().out
    assert "EMULATED" not in real
    assert "limit" not in real


def test_an_emulated_cluster_without_a_known_limit_says_why(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_tables(replace(create_result(emulated=False), no_limit_reason="no such card"))
    assert "the limit is not known: no such card" in capsys.readouterr().out


@pytest.mark.parametrize("batches", [(1, 2), (1, 2, 4, 8, 16, 32, 64, 96)])
@pytest.mark.parametrize("emulated", [False, True])
def test_a_picture_is_drawn(tmp_path: Path, emulated: bool, batches: tuple[int, ...]) -> None:
    path = tmp_path / "bench.svg"
    check_plot(path)
    write_plot(create_result(emulated=emulated, batches=batches), path)
    drawn = path.read_text()
    assert ("EMULATED" in drawn) is emulated
    assert ("limit of the emulated devices" in drawn) is emulated
    assert "not compute" in drawn


def test_a_picture_of_an_unknown_format_is_bad_usage() -> None:
    with pytest.raises(InvalidArgumentError, match="must end in"):
        check_plot(Path("bench.txt"))


def test_without_matplotlib_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plot, "find_spec", lambda name: None)
    with pytest.raises(IncompatibleError, match=r"pip install -e '\.\[plot\]'"):
        check_plot(Path("bench.png"))
