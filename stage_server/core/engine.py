"""The interface between a stage server and its engine. The server owns it; engines implement it."""

from typing import Protocol

from stage_server.core.batch import ForwardBatch, ForwardOutput
from stagecoach.contract.stage_info import StageInfo


class DeviceLostError(Exception):
    """The device computes no more for this process, which has to end.

    Never crosses the wire.
    """


class StageEngine(Protocol):
    """Runs micro-batches against its own KV memory.

    All methods but the properties are called from one thread, never concurrently.
    """

    @property
    def info(self) -> StageInfo:
        """What this engine is, with all KV blocks free; constant for its life. Any thread."""
        ...

    @property
    def num_free_kv_blocks(self) -> int:
        """Free blocks, as a snapshot. Any thread."""
        ...

    @property
    def num_held_kv_slots(self) -> int:
        """Slots that hold tokens, as a snapshot. Any thread."""
        ...

    def warm_up(self) -> None:
        """Runs one forward of each kind, so that the first request is not slow; leaves no KV."""
        ...

    def forward(self, batch: ForwardBatch) -> ForwardOutput:
        """Applies the slot operations, runs the layers, stores the new KV.

        Raises:
            StaleStateError: A slice starts beyond what its slot holds, a fork or truncate asks for
                more than there is, or a fork's target is not empty. Nothing took effect.
            KvFullError: There are not enough free blocks. Nothing took effect.
            DeviceMemoryError: The device has no memory for the activations, not even for those of
                one token at a time. The content of the batch's slots is undefined.
            DeviceLostError: The device cannot be used any more.
            Exception: Anything else leaves the content of the batch's slots undefined, their
                block accounting intact, and the engine usable.
        """
        ...

    def free_all_slots(self) -> None:
        """Gives back every slot; called when the stream that owned them ends."""
        ...
