"""Records of steps as a trace that Perfetto and Chrome show. Pure: no clock, no I/O.

The format: "Trace Event Format" of Chromium's catapult project, complete events ("ph": "X"), in
microseconds. The first process is the pipeline: a row for the coordinator and one for each stage,
on which a gap is time in which nobody had work for it. The second one follows the micro-batches:
a row for each that was in flight at the same time as others, on which nothing is left out.
"""

import heapq
from collections.abc import Iterable, Iterator, Sequence

from coordinator.timeline.phases import PhaseSpan, phases, without_overlap
from stagecoach.client import ModelStatus, StageStatus, StepRecord

TraceEvent = dict[str, object]

PIPELINE_PID = 1
MICRO_BATCHES_PID = 2
COORDINATOR_TID = 0
"""Row of the pipeline in the trace; stage `i` has the row `i + 1`."""

_NS_PER_US = 1e3
_NS_PER_MS = 1e6


def chrome_trace(
    status: ModelStatus, records: Sequence[StepRecord], *, num_lost: int = 0
) -> dict[str, object]:
    """Makes a trace, to be written as JSON.

    Args:
        status: Names the model and the stages, and says which of them are emulated.
        records: Records of one watch.
        num_lost: Steps that the watch lost.
    """
    spans = [span for record in records for span in phases(record)]
    return {
        "displayTimeUnit": "ms",
        "otherData": {
            "model": status.model_id,
            "emulated": status.emulated,
            "lost_steps": num_lost,
        },
        "traceEvents": [
            *_names(status),
            *_pipeline(spans, len(status.pipeline_stages)),
            *_micro_batches(records),
        ],
    }


def _names(status: ModelStatus) -> Iterator[TraceEvent]:
    mark = ", EMULATED" if status.emulated else ""
    yield _name("process_name", PIPELINE_PID, 0, f"pipeline of {status.model_id}{mark}")
    yield _name("process_name", MICRO_BATCHES_PID, 0, f"micro-batches in flight{mark}")
    yield _name("thread_name", PIPELINE_PID, COORDINATOR_TID, "coordinator")
    for stage in status.pipeline_stages:
        yield _name("thread_name", PIPELINE_PID, _tid(stage.index), _stage_name(stage))


def _name(kind: str, pid: int, tid: int, name: str) -> TraceEvent:
    return {"ph": "M", "name": kind, "pid": pid, "tid": tid, "args": {"name": name}}


def _stage_name(stage: StageStatus) -> str:
    layers = "" if stage.layers is None else " layers {}:{}".format(*stage.layers)
    device = "" if stage.device is None else f", {stage.device}"
    return f"stage {stage.index}{layers} at {stage.address}{device}"


def _tid(stage: int | None) -> int:
    return COORDINATOR_TID if stage is None else stage + 1


def _pipeline(spans: Iterable[PhaseSpan], num_stages: int) -> Iterator[TraceEvent]:
    lanes: dict[int, list[PhaseSpan]] = {tid: [] for tid in range(num_stages + 1)}
    for span in spans:
        lanes[_tid(span.stage)].append(span)
    for tid, lane in lanes.items():
        for span, start_ns, end_ns in without_overlap(lane):
            args = _args(span.record)
            if end_ns - start_ns < span.duration_ns:
                args["whole_phase_ms"] = span.duration_ns / _NS_PER_MS
            name = span.phase.name.lower()
            yield _slice(name, PIPELINE_PID, tid, start_ns, end_ns, args)


def _micro_batches(records: Iterable[StepRecord]) -> Iterator[TraceEvent]:
    """One row for each micro-batch in flight, the first free one for each, with its phases.

    A micro-batch is in flight until it is decided which of its tokens are the last. The tokens are
    sent while the next one runs.
    """
    free: list[int] = []
    busy: list[tuple[int, int]] = []  # (end, row), a heap
    for record in sorted(records, key=lambda record: record.started_ns):
        while busy and busy[0][0] <= record.started_ns:
            heapq.heappush(free, heapq.heappop(busy)[1])
        row = heapq.heappop(free) if free else len(busy)
        heapq.heappush(busy, (record.decided_ns, row))
        name = f"micro-batch {record.micro_batch_id}"
        start_ns, end_ns = record.started_ns, record.decided_ns
        yield _slice(name, MICRO_BATCHES_PID, row, start_ns, end_ns, _args(record))
        for span in phases(record):
            if span.start_ns >= record.decided_ns:
                continue
            name = span.phase.name.lower()
            if span.stage is not None:
                name = f"stage {span.stage} {name}"
            yield _slice(name, MICRO_BATCHES_PID, row, span.start_ns, span.end_ns, {})


def _args(record: StepRecord) -> dict[str, object]:
    return {
        "micro_batch_id": record.micro_batch_id,
        "sequences": record.num_sequences,
        "prefill_tokens": record.num_prefill_tokens,
        "decode_tokens": record.num_decode_tokens,
    }


def _slice(
    name: str, pid: int, tid: int, start_ns: int, end_ns: int, args: dict[str, object]
) -> TraceEvent:
    return {
        "ph": "X",
        "name": name,
        "pid": pid,
        "tid": tid,
        "ts": start_ns / _NS_PER_US,
        "dur": (end_ns - start_ns) / _NS_PER_US,
        "args": args,
    }
