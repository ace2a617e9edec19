"""What `status --watch` makes of what it hears, and what that looks like."""

import dataclasses
import io
import re
from typing import Any

import pytest
from rich.console import Console

from coordinator.cli.watch.output import snapshot_json
from coordinator.cli.watch.screen import bar, render, sparkline
from coordinator.cli.watch.snapshot import Snapshot
from coordinator.observe.step_window import StageActivity, StepWindow
from stagecoach.client import (
    CoordinatorStatus,
    ModelStatus,
    StageState,
    StageStatus,
    StageVisit,
    StepRecord,
    UnavailableError,
)
from stagecoach.contract.layer_range import LayerRange
from stagecoach.contract.precision import DType, Precision
from stagecoach.contract.stage_timings import StageTimings
from stagecoach.contract.step_record import StepInstants
from tests.stage_infos import create_info

S = 1_000_000_000


def a_step(*compute_ms: float) -> StepRecord:
    """A step whose stages each wait 1 ms, compute, serialize for 2 ms and have 3 ms of wire."""
    visits = tuple(
        StageVisit.of(
            0,
            round((6 + time_ms) * 1e6),
            queue_ns=1_000_000,
            compute_ns=round(time_ms * 1e6),
            serialize_ns=2_000_000,
        )
        for time_ms in compute_ms
    )
    instants = dict.fromkeys((field.name for field in dataclasses.fields(StepInstants)), 0)
    return StepRecord(
        micro_batch_id=1,
        num_sequences=1,
        num_prefill_tokens=0,
        num_decode_tokens=1,
        stages=visits,
        **instants,
    )


def a_stage(index: int, **changes: Any) -> StageStatus:
    stage = StageStatus(
        index=index,
        address=f"box{index}.example:50051",
        state=StageState.READY,
        info=create_info(
            LayerRange(index, index + 1),
            device="cuda:0 NVIDIA GeForce RTX 3060",
            precision=Precision.uniform(DType.FLOAT16),
            num_kv_blocks=100,
            num_free_kv_blocks=15,
        ),
        num_cached_kv_blocks=10,
    )
    return dataclasses.replace(stage, **changes)


def a_status(*stages: StageStatus, ready: bool = True) -> CoordinatorStatus:
    model = ModelStatus(
        model_id="some-org/some-model-13b",
        names=("some-org/some-model-13b",),
        ready=ready,
        has_tokenizer=True,
        stages=stages or tuple(map(a_stage, range(3))),
        num_running=1234,
        num_waiting=2,
        max_num_seqs=9,
        num_kv_blocks=100,
        num_free_kv_blocks=25,
        num_cached_kv_blocks=10,
        max_model_len=99,
        num_finished=3,
        num_generated_tokens=4,
        num_preemptions=5,
        num_prefix_query_tokens=0,
        num_prefix_hit_tokens=0,
        num_draft_tokens=0,
        num_accepted_draft_tokens=0,
        tokens_per_second=1.0,
    )
    return dataclasses.replace(CoordinatorStatus.of([model]), version="1", pid=1)


def a_snapshot(status: CoordinatorStatus | None, **changes: Any) -> Snapshot:
    mean = StageTimings(queue_ns=1e6, compute_ns=12345.6e6, serialize_ns=3e6, wire_ns=4e6)
    snapshot = Snapshot(
        address="coordinator.example:50050",
        status=status,
        error=None,
        activities=((StageActivity(busy_share=0.5, mean=mean),) * 3,),
        tokens_per_s=tuple(map(float, range(120))),
    )
    return dataclasses.replace(snapshot, **changes)


def shown(snapshot: Snapshot, columns: int) -> str:
    console = Console(file=io.StringIO(), width=columns, force_terminal=False)
    console.print(render(snapshot, console))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_window_holds_means_of_a_step_and_the_busy_share() -> None:
    window = StepWindow(0, 4)
    window.add(a_step(100, 400), 8 * S)
    window.add(a_step(300, 400), 9 * S)
    first, second = window.activity(10 * S).stages
    mean = StageTimings(queue_ns=1e6, compute_ns=200e6, serialize_ns=2e6, wire_ns=3e6)
    assert first == StageActivity(busy_share=0.1, mean=mean)
    assert second.busy_share == pytest.approx(0.2)


def test_what_is_older_than_the_window_is_forgotten() -> None:
    window = StepWindow(0, 4)
    window.add(a_step(100), 1 * S)
    window.add(a_step(300), 3 * S)
    assert [stage.mean.compute_ns for stage in window.activity(6 * S).stages] == [300e6]
    assert window.activity(8 * S).stages == ()


def test_a_window_that_has_just_begun_is_as_long_as_the_watch() -> None:
    window = StepWindow(7 * S, 4)
    window.add(a_step(500), 8 * S)
    assert window.activity(8 * S).stages[0].busy_share == pytest.approx(0.5)


def test_a_stage_is_never_busier_than_all_the_time() -> None:
    window = StepWindow(0, 4)
    window.add(a_step(9000), 9 * S)
    assert window.activity(9 * S).stages[0].busy_share == 1.0


def test_a_sparkline_is_as_high_as_its_largest_value() -> None:
    assert sparkline([0, 3.5, 7]) == "▁▅█"
    assert sparkline([0.0, 0.0]) == "▁▁"
    assert sparkline([]) == ""


def test_a_bar_says_its_percentage() -> None:
    assert [bar(0), bar(0.5), bar(1)] == ["░░░░░░   0 %", "███░░░  50 %", "██████ 100 %"]


@pytest.mark.parametrize("columns", [80, 120, 150, 200])
def test_nothing_is_cut_off_from_80_columns_on(columns: int) -> None:
    text = shown(a_snapshot(a_status()), columns)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= columns
    for part in ("ready", "0:1", "box2.example:50051", "float16", "75 %", "12345.6", "119.0"):
        assert part in text


def two_models() -> CoordinatorStatus:
    """One that is ready, and one that has lost a stage."""
    large = a_status(*map(a_stage, range(3))).models[0]
    lost = a_stage(0, address="other.example:1", state=StageState.LOST)
    small = a_status(lost, ready=False).models[0]
    small = dataclasses.replace(small, model_id="small", names=("small",), num_running=77)
    return CoordinatorStatus.of([large, small])


def test_each_model_has_its_own_stages_and_figures() -> None:
    """Only the first of them was shown, as not ready while all its stages were."""
    snapshot = a_snapshot(two_models())
    busy = dataclasses.replace(snapshot.activities[0][0], busy_share=0.25)
    text = shown(dataclasses.replace(snapshot, activities=(*snapshot.activities, (busy,))), 150)
    head, first, second = re.split(
        r"^(?:some-org/some-model-13b|small  not ready)$", text, flags=re.M
    )
    assert "some-org/some-model-13b, small at coordinator.example:50050  not ready" in head
    assert "stage 0 at other.example:1 is lost" in head
    assert [first.count(part) for part in ("box2.example", "1234 running", " 50 %")] == [1, 1, 3]
    assert [second.count(part) for part in ("other.example", "77 running", " 25 %")] == [1, 1, 1]
    assert text.count("tokens/s") == 1


def test_json_has_the_activity_of_each_model() -> None:
    content: Any = snapshot_json(a_snapshot(two_models()))
    first, second = content["models"]
    assert [stage["busy"] for stage in first["stages"]] == [0.5] * 3
    assert content["stages"] == first["stages"]
    assert [stage["busy"] for stage in second["stages"]] == [0.0], "nothing was heard of it yet"


def test_json_gives_all_servers_of_a_stage_what_that_stage_did() -> None:
    """The second server of a stage had the figures of the next stage."""
    servers = [a_stage(index, address=f"{name}:1") for index in (0, 1) for name in "ab"]
    mean = StageTimings(queue_ns=1e6, compute_ns=1e6, serialize_ns=1e6, wire_ns=1e6)
    did = tuple(StageActivity(busy_share=share, mean=mean) for share in (0.25, 0.75))
    content: Any = snapshot_json(a_snapshot(a_status(*servers), activities=(did,)))
    assert [stage["busy"] for stage in content["stages"]] == [0.25, 0.25, 0.75, 0.75]


def test_it_says_why_requests_are_not_served() -> None:
    status = a_status(a_stage(0), a_stage(1, state=StageState.LOST), ready=False)
    text = shown(a_snapshot(status), 80)
    assert "not ready" in text
    assert "stage 1 at box1.example:50051 is lost" in text


def test_a_coordinator_that_is_gone_is_said_and_its_last_words_are_marked() -> None:
    gone = UnavailableError("coordinator at c:1: refused")
    text = shown(a_snapshot(a_status(), error=gone), 80)
    for part in ("not ready", "refused", "said last", "box0"):
        assert part in text
    assert "refused" in shown(a_snapshot(None, error=gone), 80)


def test_json_has_busy_and_times_for_every_stage_or_the_error() -> None:
    content: Any = snapshot_json(a_snapshot(a_status()))
    assert content["error"] is None
    assert [stage["busy"] for stage in content["stages"]] == [0.5] * 3
    assert content["stages"][0]["ms_per_step"]["wire"] == 4.0
    idle: Any = snapshot_json(a_snapshot(a_status(), activities=((),)))
    assert [stage["ms_per_step"] for stage in idle["stages"]] == [None] * 3
    gone = a_snapshot(a_status(), error=UnavailableError("refused"))
    assert snapshot_json(gone) == {
        "ready": False,
        "error": {"reason": "UNAVAILABLE", "message": "refused"},
    }
