"""One micro-batch on the model thread: from the bytes of its message to the bytes of the answer.

The model thread reads and writes the messages, rather than the event loop: it has torch's code in
its caches, and it has to be woken anyway. The loop only moves bytes.
"""

import logging
import time
from collections.abc import Callable
from typing import NamedTuple

from google.protobuf.message import DecodeError

from stage_server.core.activity import StageActivity
from stage_server.core.batch import ForwardBatch
from stage_server.core.engine import DeviceLostError, StageEngine
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
) -> bytes:
    """Runs the micro-batch of one message, and counts it.

    Args:
        arrival: The message.
        activity: Where it is counted.
        engine: What computes it.
        note_tokens: Told how many rows it has, before they are computed.

    Returns:
        A `ForwardResponse`; whatever went wrong with the micro-batch is said in it.

    Raises:
        InvalidArgumentError: The message is no micro-batch, which ends the stream.
        DeviceLostError: Nothing can be computed any more.
    """
    started_ns = time.perf_counter_ns()
    request = parse_request(arrival.data)
    payload = request.WhichOneof("payload")
    if payload != "micro_batch":
        raise InvalidArgumentError(
            f"payload is {payload or 'unset'}, must be micro_batch after the stream is open",
            field="payload",
        )
    response = stage_pb2.ForwardResponse()
    result = response.result
    queue_ns = started_ns - arrival.arrived_ns
    try:
        batch = _run(request.micro_batch, engine, note_tokens, started_ns, result)
        activity.micro_batch_computed(
            batch.slices,
            queue_ns=queue_ns,
            compute_ns=result.timings.compute_ns,
            serialize_ns=result.timings.serialize_ns,
        )
    except DeviceLostError:
        raise
    except Exception as raised:  # of one micro-batch, a bug included; the stream goes on
        error = _typed(raised)
        activity.micro_batch_errors[error.reason] += 1
        result.Clear()
        result.status.CopyFrom(status.to_status(error))
    result.micro_batch_id = request.micro_batch.micro_batch_id
    result.timings.queue_ns = queue_ns
    return response.SerializeToString()


def _run(
    micro_batch: stage_pb2.MicroBatch,
    engine: StageEngine,
    note_tokens: Callable[[int], None],
    started_ns: int,
    result: stage_pb2.MicroBatchResult,
) -> ForwardBatch:
    """Computes a micro-batch, writes its output and times into a result, and returns it."""
    batch = parse_micro_batch(micro_batch, engine.info)
    note_tokens(batch.num_tokens)
    parsed_ns = time.perf_counter_ns()
    output = engine.forward(batch)
    computed_ns = time.perf_counter_ns()
    write_output(output, result)
    written_ns = time.perf_counter_ns()
    result.timings.compute_ns = computed_ns - parsed_ns
    result.timings.serialize_ns = parsed_ns - started_ns + written_ns - computed_ns
    return batch


def _typed(error: Exception) -> StagecoachError:
    """Hides what only the log may say."""
    if isinstance(error, StagecoachError):
        return error
    _log.error("a forward failed", exc_info=error)
    return InternalError("the forward of this stage failed; its log says why")
