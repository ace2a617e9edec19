"""What the server needs of the thing that computes. Owned by the server, implemented elsewhere."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from stage_server.core.batch import ForwardBatch, ForwardOutput
from stagecoach.contract.layer_range import LayerRange


class DeviceLostError(Exception):
    """The device computes no more for this process, which has to end.

    Never crosses the wire.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInfo:
    """What an engine is and what it can hold; constant for its life."""

    model_id: str
    fingerprint: str
    layers: LayerRange
    num_model_layers: int
    hidden_size: int
    vocab_size: int
    dtype: str
    """Of the weights: float32, float16 or bfloat16."""
    hidden_states_dtype: str
    """Of hidden states in and out: float32, float16 or bfloat16."""
    kv_block_size: int
    num_kv_blocks: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    device: str
    emulated: bool
    weight_bytes: int
    kv_bytes: int
    weight_digests: Mapping[str, bytes] = field(default_factory=dict, hash=False)
    """Of the parts of the model whose weights are on the stage's machine, by part; see
    `stagecoach.model_files.weight_digest`."""
    weights_revision: str = ""
    """Of all weights as a hub names them; empty where that is not known."""

    @property
    def is_first(self) -> bool:
        """True for the stage that takes token ids."""
        return self.layers.start == 0

    @property
    def is_last(self) -> bool:
        """True for the stage that computes logits."""
        return self.layers.end == self.num_model_layers


class StageEngine(Protocol):
    """Runs micro-batches against its own KV memory.

    All methods but the properties are called from one thread, never concurrently.
    """

    @property
    def info(self) -> EngineInfo:
        """What this engine is. Any thread."""
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
            DeviceMemoryError: The device has no memory for the activations; fewer tokens may fit.
                The content of the batch's slots is undefined.
            DeviceLostError: The device cannot be used any more.
            Exception: Anything else leaves the content of the batch's slots undefined, their
                block accounting intact, and the engine usable.
        """
        ...

    def free_all_slots(self) -> None:
        """Gives back every slot; called when the stream that owned them ends."""
        ...
