"""The state of the coordinator and of every stage, as a snapshot for operators."""

from dataclasses import dataclass
from enum import Enum

from stagecoach.contract.stage_info import StageInfo


class StageState(Enum):
    """State of the link to a stage."""

    READY = "ready"
    CONNECTING = "connecting"
    LOST = "lost"


@dataclass(frozen=True, slots=True, kw_only=True)
class StageStatus:
    """One server of a stage as the coordinator sees it."""

    index: int
    """Place in the pipeline, from 0."""
    address: str
    """HOST:PORT."""
    state: StageState
    info: StageInfo | None
    """What the stage said last. None when it has never been reached."""
    pipeline: int | None = None
    """Index of the pipeline that it serves. None when it is lost, or to spare."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStatus:
    """State of the coordinator; counters start at 0 with the process."""

    model_id: str
    """As the operator named it."""
    ready: bool
    """True while requests are served."""
    has_tokenizer: bool
    """Without one, only token ids are served."""
    stages: tuple[StageStatus, ...]
    """In pipeline order; the servers of one stage, which have its index, together."""
    num_running: int
    """Requests that have a KV slot."""
    num_waiting: int
    """Requests that wait for one."""
    max_num_seqs: int
    """Most requests that have a KV slot at once."""
    num_kv_blocks: int
    """Of the ledger, which mirrors the smallest stage."""
    num_free_kv_blocks: int
    """Blocks that no running request holds."""
    num_cached_kv_blocks: int
    """Those of the free blocks that hold prefixes; given up as soon as a request wants them."""
    max_model_len: int
    """Most tokens that one request may hold, prompt and output together."""
    num_finished: int
    """Requests ended, by any cause."""
    num_generated_tokens: int
    num_preemptions: int
    num_prefix_query_tokens: int
    """Tokens of all prompts that were looked up in the prefix cache."""
    num_prefix_hit_tokens: int
    """Those of them that it held."""
    tokens_per_second: float
    """Over the last ten seconds, all requests together."""
