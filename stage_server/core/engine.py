"""The interface between a stage server and its engine. The server owns it; engines implement it."""

from typing import Protocol

from stage_server.core.batch import ForwardBatch, ForwardOutput
from stagecoach.contract.stage_info import StageInfo


class DeviceLostError(Exception):
    """The device computes no more for this process, which has to end.

    Never crosses the wire.
    """


class UnfinishedForward(Protocol):
    """A micro-batch that a device computes; called from the engine's thread."""

    def due_in_s(self) -> float:
        """Says in how many seconds to ask again; 0 once `finish` hardly waits. Never raises.

        An error is due as an output is.
        """
        ...

    def finish(self) -> ForwardOutput:
        """Waits for the device and returns the output; called once.

        Later micro-batches may have been launched, and slots freed, in the meantime.

        Raises:
            DeviceMemoryError: There is no memory to copy logits to.
            DeviceLostError: The device cannot be used any more.
        """
        ...


Launched = ForwardOutput | UnfinishedForward
"""What was computed already, or what a device goes on with by itself."""


def finished(launched: Launched) -> ForwardOutput:
    """Returns the output of a micro-batch, waiting for it; raises as `UnfinishedForward.finish`."""
    return launched if isinstance(launched, ForwardOutput) else launched.finish()


class StageEngine(Protocol):
    """Runs micro-batches against its own KV memory.

    All methods but the properties are called from one thread, never concurrently.
    """

    @property
    def info(self) -> StageInfo:
        """What this engine is, with all KV blocks free; constant after `warm_up`. Any thread."""
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

    def launch(self, batch: ForwardBatch) -> Launched:
        """Applies the slot operations, runs the layers, stores the new KV.

        A device that computes by itself is not waited for: the next micro-batch may be launched
        before this one is finished. It finds the slots and the KV as this one leaves them. Each is
        finished in the order of the launches.

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
