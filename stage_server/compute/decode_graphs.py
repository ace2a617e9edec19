"""Decode steps as CUDA graphs: what a step launches layer by layer becomes one launch.

One graph is recorded for each batch size of 1, 2, 4 and so on; a step takes the smallest that holds
it. `graph_check` decides at start which sizes are worth it.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple, Protocol

import torch

from stage_server.compute.static_decodes import StaticDecodes
from stage_server.core.batch import SequenceSlice
from stage_server.kv_cache.step_indices import StepIndices
from stagecoach.roofline.step_time import MAX_GRAPH_ROWS

_NUM_WARM_UP_RUNS = 2


class Recording(NamedTuple):
    """Work that was recorded on a device, and can be launched again at once."""

    replay: Callable[[], None]
    """Launches it; waits for nothing."""
    output: torch.Tensor
    """What it computes. Each replay writes it again."""


class Recorder(Protocol):
    """Records work of a device."""

    def record(self, run: Callable[[], torch.Tensor]) -> Recording:
        """Runs `run`, also to warm up, and records what it launches.

        `run` waits for nothing and launches the same work each time.
        """
        ...


class CudaRecorder:
    """Records CUDA graphs, each in a pool of memory of its own, which goes when the graph goes."""

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def record(self, run: Callable[[], torch.Tensor]) -> Recording:
        """Records one graph; see `Recorder.record`.

        Raises:
            RuntimeError: CUDA cannot record it, among other reasons.
        """
        before = torch.cuda.current_stream()
        # torch stays on the other stream where a recording fails; this leaves it in any case.
        with torch.cuda.stream(before):
            self._stream.wait_stream(before)
            with torch.cuda.stream(self._stream):
                # Compiles and loads kernels, and makes the workspaces of cuBLAS for this stream.
                for _ in range(_NUM_WARM_UP_RUNS):
                    run()
            before.wait_stream(self._stream)
            graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
            try:
                # What other threads of the process do with CUDA, if anything, does not disturb it.
                with torch.cuda.graph(
                    graph, pool=pool, stream=self._stream, capture_error_mode="thread_local"
                ):
                    output = run()
            except Exception:  # raised again, whatever it is; the allocator must not stay as it is
                self._end_allocation(pool)
                raise
        return Recording(graph.replay, output)

    def _end_allocation(self, pool: tuple[int, int]) -> None:
        """Tells torch's allocator that a recording that failed has ended.

        torch without pytorch#180395 does not where CUDA has invalidated the recording. From then
        on it would refuse to give back memory, and never look whether streams still use any.
        Without pytorch#190348 it keeps what the recording took.
        """
        with suppress(RuntimeError):  # torch has done so
            torch._C._cuda_endAllocateToPool(self._stream.device_index, pool)


class DecodeGraphs:
    """The recorded sizes of decode steps.

    Args:
        static: What is recorded.
        recorder: Records it.
    """

    def __init__(self, static: StaticDecodes, recorder: Recorder) -> None:
        self._static = static
        self._recorder = recorder
        self._recordings: dict[int, Recording] = {}

    @property
    def max_num_positions(self) -> int:
        """Positions that a sequence may have."""
        return self._static.max_num_positions

    @property
    def sizes(self) -> tuple[int, ...]:
        """Rows of the graphs that there are, ascending."""
        return tuple(sorted(self._recordings))

    def record(self, size: int) -> None:
        """Records a graph of so many rows; raises what the recorder raises."""
        self._recordings[size] = self._recorder.record(lambda: self._static.forward(size))

    def drop(self, size: int) -> None:
        """Forgets a graph, if there is one; what it took is free."""
        self._recordings.pop(size, None)

    def size_for(self, slices: Sequence[SequenceSlice]) -> int | None:
        """Returns the size of the graph that computes such a step; None: there is none."""
        if not all(piece.is_single_token for piece in slices):
            return None
        return min((size for size in self._recordings if size >= len(slices)), default=None)

    def run(self, indices: StepIndices, size: int) -> torch.Tensor:
        """Runs the layers over a step.

        Args:
            indices: Indices of the step; its blocks are ready.
            size: What `size_for` has returned.

        Returns:
            `[num_tokens, hidden_size]`, in the compute dtype. The next run overwrites it, behind
            what the device was given in between.
        """
        self._static.fill(indices, size)
        recording = self._recordings[size]
        recording.replay()
        return recording.output[: len(indices.positions)]


def graph_sizes(max_rows: int) -> list[int]:
    """Returns the sizes that hold steps of up to `max_rows` sequences: 1, 2, 4 and so on."""
    largest = min(max_rows, MAX_GRAPH_ROWS)
    return [1 << power for power in range((largest - 1).bit_length() + 1)]
