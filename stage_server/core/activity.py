"""What a stage server has done and is, in plain numbers that any thread may read.

Each number is written by one thread: those of micro-batches by the model thread, those of streams
and of the server's life by the event loop.
"""

from collections import Counter
from collections.abc import Sequence

from stage_server.core.batch import SequenceSlice
from stage_server.core.engine import StageEngine
from stagecoach.telemetry.histogram import NS_PER_S, STEP_BOUNDS_S, Histogram


class StageActivity:
    """Counts from the start of one server."""

    def __init__(self) -> None:
        self.engine: StageEngine | None = None
        """Once it is loaded."""
        self.load_s: float | None = None
        """Seconds that loading and warming up took."""
        self.is_ready = False
        """True from the end of loading to the beginning of draining."""
        self.num_micro_batches = 0
        self.num_prefill_tokens = 0
        """Rows of slices of several tokens."""
        self.num_decode_tokens = 0
        """Rows of slices of one token; see `SequenceSlice.is_single_token`."""
        self.device_free_ns = 0
        """When the latest forward ended, by `time.perf_counter_ns()`. Model thread only."""
        self.queue = Histogram(STEP_BOUNDS_S, unit=NS_PER_S)
        self.compute = Histogram(STEP_BOUNDS_S, unit=NS_PER_S)
        self.serialize = Histogram(STEP_BOUNDS_S, unit=NS_PER_S)
        self.micro_batch_errors: Counter[str] = Counter()
        """Refused or failed micro-batches by the reason of their error."""
        self.num_streams_opened = 0
        self.num_open_streams = 0
        self.stream_errors: Counter[str] = Counter()
        """Streams that were refused or ended with an error, by its reason."""

    def micro_batch_computed(
        self,
        slices: Sequence[SequenceSlice],
        *,
        queue_ns: int,
        compute_ns: int,
        serialize_ns: int,
    ) -> None:
        """Counts a micro-batch, unless it only freed slots. Model thread only.

        Args:
            slices: In any order.
            queue_ns: Waiting for the model thread.
            compute_ns: The forward.
            serialize_ns: Reading the message and writing the output.
        """
        if not slices:
            return
        num_decode_tokens = num_tokens = 0
        for piece in slices:
            num_tokens += piece.num_tokens
            if piece.is_single_token:
                num_decode_tokens += piece.num_tokens
        self.num_micro_batches += 1
        self.num_prefill_tokens += num_tokens - num_decode_tokens
        self.num_decode_tokens += num_decode_tokens
        self.queue.observe(queue_ns)
        self.compute.observe(compute_ns)
        self.serialize.observe(serialize_ns)
