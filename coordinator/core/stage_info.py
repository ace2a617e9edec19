"""What a stage said of itself when asked."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from stagecoach.contract.layer_range import LayerRange


@dataclass(frozen=True, slots=True, kw_only=True)
class StageInfo:
    """The fields of `stagecoach.v1.GetInfoResponse`.

    `num_free_kv_blocks` is a snapshot; everything else holds for the life of the stage's process.
    """

    protocol_version: int
    model_id: str
    """As the stage's operator named it; for people."""
    fingerprint: str
    """Digest of config and tensor index; equal on every stage of one pipeline."""
    layers: LayerRange
    num_model_layers: int
    hidden_size: int
    vocab_size: int
    dtype: str
    """Of the weights: float32, float16 or bfloat16."""
    hidden_states_dtype: str
    """Of hidden states on the wire: float32, float16 or bfloat16."""
    kv_block_size: int
    """Tokens in a block."""
    num_kv_blocks: int
    num_free_kv_blocks: int
    max_num_seqs: int
    """Valid KV slots are [0, max_num_seqs)."""
    max_num_batched_tokens: int
    max_model_len: int
    device: str
    """For people."""
    emulated: bool
    version: str
    pid: int
    """On the stage's own machine."""
    weight_bytes: int
    kv_bytes: int
    weight_digests: Mapping[str, bytes] = field(default_factory=dict, hash=False)
    """Of the parts of the model whose weights are on the stage's machine, by part; see
    `stagecoach.model_files.weight_digest`."""
    weights_revision: str = ""
    """Of all weights as a hub names them; empty where that is not known."""
    adds_noise: bool = False
    """True when it answers `LogitsRequest.num_contenders`."""

    @property
    def is_first(self) -> bool:
        """True for the stage that takes token ids."""
        return self.layers.start == 0

    @property
    def is_last(self) -> bool:
        """True for the stage that computes logits."""
        return self.layers.end == self.num_model_layers
