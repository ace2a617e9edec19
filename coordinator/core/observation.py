"""What the engine tells those who observe it: plain data, without prompts, tokens or text."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from coordinator.core.request import FinishReason
from stagecoach.contract.errors import StagecoachError
from stagecoach.contract.stage_info import StageInfo
from stagecoach.contract.stage_timings import StageTimings


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestEnd:
    """How a request that was accepted ended. Times are of `time.perf_counter_ns`."""

    request_id: str
    reason: FinishReason
    error: StagecoachError | None
    """Set exactly when the reason is `ERROR`."""
    num_prompt_tokens: int
    num_completion_tokens: int
    """Tokens that were sent to the client."""
    num_cached_tokens: int
    """Tokens of the prompt that the prefix cache held."""
    num_steps: int
    """Micro-batches that it took part in."""
    num_preemptions: int
    """Times it gave up its KV to others."""
    num_replays: int
    """Times it lost its KV to a fault, and was computed again."""
    arrival_ns: int
    first_step_ns: int | None
    """When it was first scheduled. None when it never was."""
    first_token_ns: int | None
    """When its first token was sent. None when none was."""
    end_ns: int


class StepSummary(NamedTuple):
    """A micro-batch that went through all stages, after its tokens were sent."""

    num_prefill_tokens: int
    num_decode_tokens: int
    num_sent_tokens: int
    """Tokens that went to clients."""
    inter_token_ns: Mapping[int, int]
    """Time since the token before, of the same request -> how many of the tokens took that long;
    without first tokens. Those of one micro-batch mostly share the one before, and so the time."""
    stages: tuple[StageTimings[int], ...]
    """Times at each stage, in pipeline order; `serialize_ns` counts the stage's and the
    coordinator's."""


class StageServerFigures(NamedTuple):
    """A server of a stage, as metrics show it."""

    address: str
    info: StageInfo | None
    """What it said of itself last. None when it was never reached."""
    is_open: bool
    """True while it can be reached."""
    num_losses: int
    """Times that it was lost."""


StageFigures = tuple[StageServerFigures, ...]
"""All servers of a stage."""


class EngineFigures(NamedTuple):
    """State of the engine at one moment, at no cost; counts are since its start."""

    is_ready: bool
    """True while requests are served."""
    num_running: int
    num_waiting: int
    num_micro_batches: int
    """Micro-batches in flight."""
    num_kv_blocks: int
    """KV blocks of the scheduler's ledger, which mirrors the smallest stage."""
    num_free_kv_blocks: int
    """That no running request holds."""
    num_cached_kv_blocks: int
    """Free KV blocks that hold prefixes."""
    num_prefix_query_tokens: int
    num_prefix_hit_tokens: int
    num_preemptions: int
    """Times that a sequence gave up its KV to others."""
    num_replays: int
    """Times that a sequence has to be computed again because a micro-batch or a stage was lost."""
    num_draft_tokens: int
    """Guessed tokens that came back checked."""
    num_accepted_draft_tokens: int
    """Tokens of `num_draft_tokens` that were right."""
    stages: tuple[StageFigures, ...]
    """What is known of each stage, in pipeline order."""
