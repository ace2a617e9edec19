"""Traces made from hand-made records."""

import json
from itertools import pairwise
from typing import Any

import pytest

from coordinator.timeline.chrome_trace import MICRO_BATCHES_PID, PIPELINE_PID, chrome_trace
from coordinator.timeline.phases import phases
from stagecoach.client import StageVisit, StepRecord
from tests.client_statuses import create_status

US = 1000


def create_visit(sent_us: int, *, queue_us: int = 0) -> StageVisit:
    """10 us of wire, 4 of serialization and 30 of compute, besides the queue."""
    return StageVisit.of(
        sent_us * US,
        (sent_us + 44 + queue_us) * US,
        queue_ns=queue_us * US,
        compute_ns=30 * US,
        serialize_ns=4 * US,
    )


def create_record(micro_batch_id: int, start_us: int, *visits: StageVisit) -> StepRecord:
    back_us = visits[-1].arrived_ns // US
    return StepRecord(
        micro_batch_id=micro_batch_id,
        num_sequences=2,
        num_prefill_tokens=5,
        num_decode_tokens=1,
        started_ns=start_us * US,
        scheduled_ns=(start_us + 2) * US,
        stages=visits,
        sampling_ns=(back_us + 1) * US,
        sampled_ns=(back_us + 4) * US,
        decided_ns=(back_us + 6) * US,
        emitting_ns=(back_us + 9) * US,
        emitted_ns=(back_us + 10) * US,
    )


def slices(trace: dict[str, Any], pid: int, tid: int) -> list[dict[str, Any]]:
    events = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    return [event for event in events if (event["pid"], event["tid"]) == (pid, tid)]


def shown(trace: dict[str, Any], pid: int, tid: int) -> list[tuple[str, int, int]]:
    """Name, start and end of every slice of a row, in order."""
    found = [(one["name"], one["ts"], one["ts"] + one["dur"]) for one in slices(trace, pid, tid)]
    return sorted(found, key=lambda one: (one[1], -one[2]))


def test_a_micro_batch_alone_shows_every_phase_in_order_on_the_rows_of_its_stages() -> None:
    record = create_record(7, 100, create_visit(103), create_visit(148, queue_us=6))
    trace = chrome_trace(create_status(2), [record])
    assert shown(trace, PIPELINE_PID, 0) == [
        ("schedule", 100, 102),
        ("relay", 102, 103),
        ("relay", 147, 148),
        ("relay", 198, 199),
        ("sample", 199, 202),
        ("detokenize", 202, 204),
        ("detokenize", 207, 208),
    ]
    assert shown(trace, PIPELINE_PID, 1) == [
        ("wire", 103, 108),
        ("serialize", 108, 110),
        ("compute", 110, 140),
        ("serialize", 140, 142),
        ("wire", 142, 147),
    ]
    assert [one[0] for one in shown(trace, PIPELINE_PID, 2)][2:4] == ["queue", "compute"]
    for event in slices(trace, PIPELINE_PID, 1):
        assert event["args"] == {
            "micro_batch_id": 7,
            "sequences": 2,
            "prefill_tokens": 5,
            "decode_tokens": 1,
        }


def test_phases_of_a_micro_batch_follow_each_other_without_gap_until_it_is_decided() -> None:
    record = create_record(7, 100, create_visit(103), create_visit(148, queue_us=6))
    *found, sending = phases(record)
    assert all(before.end_ns == after.start_ns for before, after in pairwise(found))
    assert (found[0].start_ns, found[-1].end_ns) == (record.started_ns, record.decided_ns)
    assert (sending.start_ns, sending.end_ns) == (record.emitting_ns, record.emitted_ns)


def test_what_hides_behind_the_compute_of_another_micro_batch_is_not_shown() -> None:
    first = create_record(1, 0, create_visit(2))
    second = create_record(2, 10, create_visit(12, queue_us=20))
    trace = chrome_trace(create_status(1), [first, second])
    assert shown(trace, PIPELINE_PID, 1) == [
        ("wire", 2, 7),
        ("serialize", 7, 9),
        ("compute", 9, 39),
        ("compute", 39, 69),  # of the second, which had queued for the first
        ("serialize", 69, 71),
        ("wire", 71, 76),
    ]


def test_a_phase_that_is_cut_says_how_long_the_whole_is() -> None:
    first = create_record(1, 0, create_visit(2))
    second = create_record(2, 3, create_visit(5, queue_us=60))
    trace = chrome_trace(create_status(1), [first, second])
    (queue,) = [one for one in slices(trace, PIPELINE_PID, 1) if one["name"] == "queue"]
    assert (queue["dur"], queue["args"]["whole_phase_ms"]) == (72 - 41, 0.06)


def test_micro_batches_in_flight_together_have_rows_of_their_own_and_share_them_later() -> None:
    records = [
        create_record(1, 0, create_visit(2)),
        create_record(2, 10, create_visit(12)),
        create_record(3, 64, create_visit(66)),
    ]
    trace = chrome_trace(create_status(1), records)
    names = [shown(trace, MICRO_BATCHES_PID, row) for row in range(2)]
    assert [one[0] for one in names[0] if "micro-batch" in one[0]] == [
        "micro-batch 1",
        "micro-batch 3",
    ]
    assert names[1][0] == ("micro-batch 2", 10, 62)
    assert names[1][-1] == ("detokenize", 60, 62)
    assert ("stage 0 compute", 19, 49) in names[1]
    assert slices(trace, MICRO_BATCHES_PID, 2) == []


@pytest.mark.parametrize("emulated", [False, True])
def test_processes_say_when_a_stage_is_emulated(emulated: bool) -> None:
    trace = chrome_trace(create_status(2, device="emulated t4-16gb" if emulated else "cpu"), [])
    events: Any = json.loads(json.dumps(trace))["traceEvents"]
    names = [event["args"]["name"] for event in events if event["name"] == "process_name"]
    assert len(names) == 2
    assert all(("EMULATED" in name) is emulated for name in names)
    rows = [event["args"]["name"] for event in events if event["name"] == "thread_name"]
    assert rows[0] == "coordinator"
    assert rows[1].startswith("stage 0 layers 0:20 at h:0, ")
