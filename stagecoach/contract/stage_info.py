"""What a stage is and what it can hold. Standard library only."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from stagecoach.contract.layer_range import LayerRange
from stagecoach.contract.precision import Precision
from stagecoach.contract.protocol import PROTOCOL_VERSION
from stagecoach.version import __version__


@dataclass(frozen=True, slots=True, kw_only=True)
class StageInfo:
    """What a stage server says of itself; the fields of `stagecoach.v1.GetInfoResponse`.

    `num_free_kv_blocks` is a snapshot; everything else holds for the life of the stage's process.
    The defaults are what a stage of this version says of its own process.
    """

    protocol_version: int = PROTOCOL_VERSION
    model_id: str
    """Name of the model for people, as the stage's operator gave it."""
    fingerprint: str
    """Digest of config and tensor index; equal on every stage of one pipeline."""
    layers: LayerRange
    num_model_layers: int
    hidden_size: int
    vocab_size: int
    precision: Precision
    """In which formats it keeps, computes and sends numbers."""
    kv_block_size: int
    """Tokens in a block."""
    num_kv_blocks: int
    num_free_kv_blocks: int
    max_num_seqs: int
    """Valid KV slots are [0, max_num_seqs)."""
    max_num_batched_tokens: int
    """Most tokens of one micro-batch."""
    max_model_len: int
    """Most tokens of one sequence."""
    device: str
    """Name of the device, for people."""
    emulated: bool
    """True when the stage waits as long as a device would take, instead of computing."""
    version: str = __version__
    """Version of the stage's software."""
    pid: int = field(default_factory=os.getpid)
    """On the stage's own machine."""
    weight_bytes: int
    num_weights: int = 0
    """Numbers that `weight_bytes` hold; 0 where the stage does not say it."""
    kv_bytes: int
    weight_digests: Mapping[str, bytes] = field(default_factory=dict, hash=False)
    """Digest of each part of the model whose weights are on the stage's machine, by the part's
    name; see `stagecoach.model_files.weight_digest`."""
    weights_revision: str = ""
    """Revision of all weights, as a hub names it; empty where that is not known."""
    adds_noise: bool = True
    """True when the stage answers `LogitsRequest.num_contenders`."""
    answers_prompt_logits: bool = True
    """True when the stage answers `MicroBatch.prompt_logits`."""
    answers_hidden_sums: bool = True
    """True when the stage answers `MicroBatch.hidden_sums`."""
    attention: str = ""
    """How attention reads the KV of sequences that decode: `kernel` where it lies, `gather` after
    gathering it; empty where nothing is read."""
    max_graph_seqs: int = 0
    """Sequences of the largest step of decoding that is launched as one CUDA graph; 0: none is."""

    @property
    def bits_per_weight(self) -> float | None:
        """Bits of memory for each weight, scales included; None where the stage does not say it."""
        return 8 * self.weight_bytes / self.num_weights if self.num_weights else None

    @property
    def is_first(self) -> bool:
        """True for the stage that takes token ids."""
        return self.layers.start == 0

    @property
    def is_last(self) -> bool:
        """True for the stage that computes logits."""
        return self.layers.end == self.num_model_layers
