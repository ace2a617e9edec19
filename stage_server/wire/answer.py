"""One micro-batch on the model thread: from the bytes of its message to the bytes of the answer.

The model thread reads and writes the messages, rather than the event loop: it has torch's code in
its caches, and it has to be woken anyway. The loop only moves bytes. What a device computes by
itself is answered when it is done; the thread reads and launches the next micro-batch meanwhile.
"""

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from google.protobuf.message import DecodeError

from stage_server.compute.executor import Deferred
from stage_server.core.activity import StageActivity
from stage_server.core.batch import ForwardOutput, SequenceSlice
from stage_server.core.engine import DeviceLostError, StageEngine, UnfinishedForward
from stage_server.wire.micro_batch import parse_micro_batch, write_output
from stagecoach.contract import status
from stagecoach.contract.errors import InternalError, InvalidArgumentError, StagecoachError
from stagecoach.v1 import stage_pb2

_log = logging.getLogger(__name__)


class Arrival(NamedTuple):
    """A message as it came."""

    data: bytes
    arrived_ns: int
    """`time.perf_counter_ns()`."""


def parse_request(data: bytes) -> stage_pb2.ForwardRequest:
    """Reads a message.

    Raises:
        InvalidArgumentError: The bytes are not a `ForwardRequest`.
    """
    try:
        return stage_pb2.ForwardRequest.FromString(data)
    except DecodeError as error:
        raise InvalidArgumentError(f"{len(data)} bytes are not a ForwardRequest") from error


def answer(
    arrival: Arrival,
    activity: StageActivity,
    engine: StageEngine,
    *,
    note_tokens: Callable[[int], None],
) -> bytes | Deferred[bytes]:
    """Runs the micro-batch of one message, and counts it.

    Args:
        arrival: The message.
        activity: Where it is counted.
        engine: What computes it.
        note_tokens: Told how many rows it has, before they are computed.

    Returns:
        A `ForwardResponse`, at once or when the device has computed it; whatever went wrong with
        the micro-batch is said in it.

    Raises:
        InvalidArgumentError: The message is no micro-batch, which ends the stream.
        DeviceLostError: Nothing can be computed any more. What is deferred may raise it too.
    """
    started_ns = time.perf_counter_ns()
    request = parse_request(arrival.data)
    payload = request.WhichOneof("payload")
    if payload != "micro_batch":
        raise InvalidArgumentError(
            f"payload is {payload or 'unset'}, must be micro_batch after the stream is open",
            field="payload",
        )
    micro_batch = request.micro_batch
    queue_ns = started_ns - arrival.arrived_ns
    try:
        batch = parse_micro_batch(micro_batch, engine.info)
        note_tokens(batch.num_tokens)
        parsed_ns = time.perf_counter_ns()
        launched = engine.launch(batch)
        pending = _Pending(
            micro_batch.micro_batch_id, batch.slices, arrival.arrived_ns, started_ns, parsed_ns
        )
        if isinstance(launched, ForwardOutput):
            return _written(pending, launched, parsed_ns, activity)
        return Deferred(launched.due_in_s, partial(_finish, pending, launched, activity))
    except DeviceLostError:
        raise
    except Exception as raised:  # of one micro-batch, a bug included; the stream goes on
        return _failure(micro_batch.micro_batch_id, raised, queue_ns, activity)


class _Pending(NamedTuple):
    """A micro-batch that is launched, and the moments on its way, by `time.perf_counter_ns()`."""

    micro_batch_id: int
    slices: Sequence[SequenceSlice]
    arrived_ns: int
    started_ns: int
    parsed_ns: int


def _finish(pending: _Pending, forward: UnfinishedForward, activity: StageActivity) -> bytes:
    """Waits for a micro-batch, and returns the answer to it.

    One that was launched before the last one had ended waits in the queue until then: so no time
    of the device counts for two.
    """
    began_ns = max(pending.parsed_ns, activity.device_free_ns)
    try:
        output = forward.finish()
        activity.device_free_ns = time.perf_counter_ns()
        return _written(pending, output, began_ns, activity)
    except DeviceLostError:
        raise
    except Exception as raised:  # of one micro-batch, a bug included; the stream goes on
        activity.device_free_ns = time.perf_counter_ns()
        queue_ns = pending.started_ns - pending.arrived_ns
        return _failure(pending.micro_batch_id, raised, queue_ns, activity)


def _written(
    pending: _Pending, output: ForwardOutput, began_ns: int, activity: StageActivity
) -> bytes:
    """Counts a micro-batch that was computed from `began_ns` until now, and returns the answer."""
    computed_ns = time.perf_counter_ns()
    response = stage_pb2.ForwardResponse()
    result = response.result
    result.micro_batch_id = pending.micro_batch_id
    write_output(output, result)
    written_ns = time.perf_counter_ns()
    timings = result.timings
    timings.compute_ns = computed_ns - began_ns
    timings.serialize_ns = pending.parsed_ns - pending.started_ns + written_ns - computed_ns
    # What is left, so that the three add up.
    timings.queue_ns = written_ns - pending.arrived_ns - timings.compute_ns - timings.serialize_ns
    activity.micro_batch_computed(
        pending.slices,
        queue_ns=timings.queue_ns,
        compute_ns=timings.compute_ns,
        serialize_ns=timings.serialize_ns,
    )
    return response.SerializeToString()


def _failure(
    micro_batch_id: int, raised: Exception, queue_ns: int, activity: StageActivity
) -> bytes:
    """Counts a micro-batch that failed, and returns the answer to it."""
    error = _typed(raised)
    activity.micro_batch_errors[error.reason] += 1
    response = stage_pb2.ForwardResponse()
    response.result.micro_batch_id = micro_batch_id
    response.result.status.CopyFrom(status.to_status(error))
    response.result.timings.queue_ns = queue_ns
    return response.SerializeToString()


def _typed(error: Exception) -> StagecoachError:
    """Hides what only the log may say."""
    if isinstance(error, StagecoachError):
        return error
    _log.error("a forward failed", exc_info=error)
    return InternalError("the forward of this stage failed; its log says why")
