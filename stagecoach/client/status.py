"""The state of a coordinator and its stages, as a snapshot."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from stagecoach.v1 import generation_pb2


class StageState(StrEnum):
    """State of the coordinator's link to a stage."""

    READY = "ready"
    CONNECTING = "connecting"
    LOST = "lost"


_STAGE_STATES: Mapping[int, StageState] = MappingProxyType(
    {
        generation_pb2.STAGE_STATE_READY: StageState.READY,
        generation_pb2.STAGE_STATE_CONNECTING: StageState.CONNECTING,
        generation_pb2.STAGE_STATE_LOST: StageState.LOST,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StageStatus:
    """One server of a stage, as the coordinator sees it.

    What only the stage knows is None, and counts and sizes are 0, until it has been reached once.
    """

    index: int
    """Place of the stage in the pipeline, from 0; equal for the servers of one stage."""
    address: str
    state: StageState
    layers: tuple[int, int] | None
    """Half-open, global indices."""
    device: str | None
    dtype: str | None
    """Of the weights."""
    emulated: bool
    version: str | None
    pid: int | None
    """On the stage's own machine."""
    vocab_size: int
    kv_block_size: int
    """Tokens in a block."""
    num_kv_blocks: int
    num_free_kv_blocks: int
    weight_bytes: int
    kv_bytes: int
    pipeline: int | None = None
    """Index of the pipeline that it is in; None when it is lost, or to spare."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CoordinatorStatus:
    """A coordinator; counters start at 0 with its process."""

    model_id: str
    ready: bool
    """True while requests are served."""
    has_tokenizer: bool
    """Without one, only token ids are served."""
    version: str
    pid: int
    stages: tuple[StageStatus, ...]
    """In pipeline order, the servers of one stage together."""
    num_running: int
    num_waiting: int
    max_num_seqs: int
    """Most requests that run at once."""
    num_kv_blocks: int
    """Of the ledger, which mirrors the smallest stage."""
    num_free_kv_blocks: int
    """Blocks that no running request holds."""
    num_cached_kv_blocks: int
    """Those of the free blocks that hold prefixes; given up as soon as a request wants them."""
    max_model_len: int
    """Most tokens of one request, prompt and output together."""
    num_finished: int
    num_generated_tokens: int
    num_preemptions: int
    num_prefix_query_tokens: int
    """Tokens of all prompts that were looked up in the prefix cache."""
    num_prefix_hit_tokens: int
    """Those of them that it held."""
    tokens_per_second: float
    """Over the last ten seconds, all requests together."""

    @property
    def pipeline_stages(self) -> tuple[StageStatus, ...]:
        """One server of every stage, in pipeline order."""
        return tuple({stage.index: stage for stage in reversed(self.stages)}.values())[::-1]

    @property
    def emulated(self) -> bool:
        """True when a stage takes the time of a device that is not there."""
        return any(stage.emulated for stage in self.stages)


def read_status(message: generation_pb2.GetStatusResponse) -> CoordinatorStatus:
    """Reads the answer of GetStatus."""
    return CoordinatorStatus(
        model_id=message.model_id,
        ready=message.ready,
        has_tokenizer=message.has_tokenizer,
        version=message.version,
        pid=message.pid,
        stages=tuple(map(_stage_status, message.stages)),
        num_running=message.num_running,
        num_waiting=message.num_waiting,
        max_num_seqs=message.max_num_seqs,
        num_kv_blocks=message.num_kv_blocks,
        num_free_kv_blocks=message.num_free_kv_blocks,
        num_cached_kv_blocks=message.num_cached_kv_blocks,
        max_model_len=message.max_model_len,
        num_finished=message.num_finished,
        num_generated_tokens=message.num_generated_tokens,
        num_preemptions=message.num_preemptions,
        num_prefix_query_tokens=message.num_prefix_query_tokens,
        num_prefix_hit_tokens=message.num_prefix_hit_tokens,
        tokens_per_second=message.tokens_per_second,
    )


def _stage_status(message: generation_pb2.StageStatus) -> StageStatus:
    info = message.info
    is_known = message.HasField("info")
    return StageStatus(
        index=message.index,
        address=message.address,
        state=_STAGE_STATES[message.state],
        layers=(info.layers.start, info.layers.end) if is_known else None,
        device=info.device if is_known else None,
        dtype=info.dtype if is_known else None,
        emulated=info.emulated,
        version=info.version if is_known else None,
        pid=info.pid if is_known else None,
        vocab_size=info.vocab_size,
        kv_block_size=info.kv_block_size,
        num_kv_blocks=info.num_kv_blocks,
        num_free_kv_blocks=info.num_free_kv_blocks,
        weight_bytes=info.weight_bytes,
        kv_bytes=info.kv_bytes,
        pipeline=message.pipeline if message.HasField("pipeline") else None,
    )
