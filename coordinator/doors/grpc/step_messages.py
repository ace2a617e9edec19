"""Records of steps as `stagecoach.v1` messages, with instants relative to a watch's origin."""

import time

from coordinator.core.step_chunk import StepChunk
from stagecoach.contract.step_record import StageVisit, StepRecord
from stagecoach.v1 import generation_pb2


def watch_started(origin_ns: int) -> generation_pb2.WatchStepsResponse:
    """Writes the first event of a watch.

    Args:
        origin_ns: Origin of the watch, in nanoseconds of `time.perf_counter_ns`.
    """
    age_ns = time.perf_counter_ns() - origin_ns
    started = generation_pb2.WatchStarted(origin_unix_ns=time.time_ns() - age_ns)
    return generation_pb2.WatchStepsResponse(started=started)


def step_chunk(chunk: StepChunk, origin_ns: int) -> generation_pb2.WatchStepsResponse:
    """Writes records."""
    records = [_step_record(record, origin_ns) for record in chunk.records]
    steps = generation_pb2.StepChunk(records=records, num_lost=chunk.num_lost)
    return generation_pb2.WatchStepsResponse(steps=steps)


def _step_record(record: StepRecord, origin_ns: int) -> generation_pb2.StepRecord:
    return generation_pb2.StepRecord(
        micro_batch_id=record.micro_batch_id,
        num_sequences=record.num_sequences,
        num_prefill_tokens=record.num_prefill_tokens,
        num_decode_tokens=record.num_decode_tokens,
        started_ns=record.started_ns - origin_ns,
        scheduled_ns=record.scheduled_ns - origin_ns,
        stages=[_stage_visit(visit, origin_ns) for visit in record.stages],
        sampling_ns=record.sampling_ns - origin_ns,
        sampled_ns=record.sampled_ns - origin_ns,
        decided_ns=record.decided_ns - origin_ns,
        emitting_ns=record.emitting_ns - origin_ns,
        emitted_ns=record.emitted_ns - origin_ns,
    )


def _stage_visit(visit: StageVisit, origin_ns: int) -> generation_pb2.StageVisit:
    return generation_pb2.StageVisit(
        sent_ns=visit.sent_ns - origin_ns,
        arrived_ns=visit.arrived_ns - origin_ns,
        queue_ns=visit.queue_ns,
        compute_ns=visit.compute_ns,
        serialize_ns=visit.serialize_ns,
    )
