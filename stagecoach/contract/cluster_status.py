"""The state of a coordinator, its models and their stages, as a snapshot. Standard library only."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Self

from stagecoach.contract.model_choice import not_found, unnamed
from stagecoach.contract.stage_info import StageInfo
from stagecoach.version import __version__


class ModelState(StrEnum):
    """Whether a model is served."""

    SERVING = "serving"
    LOADING = "loading"
    """Its stages are waited for, at the start or because they were lost."""
    FAILED = "failed"
    """It cannot be served as it is; an operator must act."""


class StageState(StrEnum):
    """State of the coordinator's link to a stage."""

    READY = "ready"
    CONNECTING = "connecting"
    LOST = "lost"


@dataclass(frozen=True, slots=True, kw_only=True)
class StageStatus:
    """One server of a stage, as the coordinator sees it.

    What only the stage knows is None, and counts and sizes are 0, until it has been reached once.
    """

    index: int
    """Place of the stage in the pipeline, from 0; equal for the servers of one stage."""
    address: str
    """HOST:PORT."""
    state: StageState
    info: StageInfo | None
    """What the stage said of itself last. None when it has never been reached."""
    pipeline: int | None = None
    """Index of the pipeline that it is in. None when it is lost, or to spare."""
    num_cached_kv_blocks: int = 0
    """KV blocks that hold prefixes and that no running request holds; given up as soon as a request
    wants them. 0 where an older coordinator does not say."""

    @property
    def layers(self) -> tuple[int, int] | None:
        """Half-open, global indices."""
        return None if self.info is None else (self.info.layers.start, self.info.layers.end)

    @property
    def device(self) -> str | None:
        """What computes, for people."""
        return None if self.info is None else self.info.device

    @property
    def dtype(self) -> str | None:
        """Name of the format in which the stage keeps matrices; None until it was reached."""
        return None if self.info is None else self.info.precision.weights.name

    @property
    def bits_per_weight(self) -> float | None:
        """Bits of memory for each weight, scales included; None where that is not known."""
        return None if self.info is None else self.info.bits_per_weight

    @property
    def kv_dtype(self) -> str | None:
        """Name of the format in which keys and values are kept; None until it was reached."""
        return None if self.info is None else self.info.precision.kv.value

    @property
    def forms(self) -> str:
        """Forms of weights and KV, for people: `int4 weights of 5.2 bits, int8 KV`."""
        bits = "" if self.bits_per_weight is None else f" of {self.bits_per_weight:.1f} bits"
        return f"{self.dtype or '?'} weights{bits}, {self.kv_dtype or '?'} KV"

    @property
    def emulated(self) -> bool:
        """True when it takes the time of a device that is not there."""
        return self.info is not None and self.info.emulated

    @property
    def version(self) -> str | None:
        """Version of the stage's software; None until it was reached."""
        return None if self.info is None else self.info.version

    @property
    def pid(self) -> int | None:
        """On the stage's own machine."""
        return None if self.info is None else self.info.pid

    @property
    def vocab_size(self) -> int:
        """Logits a row."""
        return 0 if self.info is None else self.info.vocab_size

    @property
    def kv_block_size(self) -> int:
        """Tokens in a block."""
        return 0 if self.info is None else self.info.kv_block_size

    @property
    def num_kv_blocks(self) -> int:
        """KV blocks in the pool."""
        return 0 if self.info is None else self.info.num_kv_blocks

    @property
    def num_free_kv_blocks(self) -> int:
        """KV blocks in which there is nothing; those of kept prefixes are not among them."""
        return 0 if self.info is None else self.info.num_free_kv_blocks

    @property
    def num_used_kv_blocks(self) -> int:
        """KV blocks that running requests hold."""
        return self.num_kv_blocks - self.num_free_kv_blocks - self.num_cached_kv_blocks

    @property
    def weight_bytes(self) -> int:
        """Memory that the weights take."""
        return 0 if self.info is None else self.info.weight_bytes

    @property
    def kv_bytes(self) -> int:
        """Memory that the KV pool takes."""
        return 0 if self.info is None else self.info.kv_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelStatus:
    """A model that a coordinator serves; counters start at 0 with the coordinator's process."""

    model_id: str
    """Name of the model, as the operator gave it."""
    names: tuple[str, ...]
    """What requests may call it; answers over HTTP show the first."""
    ready: bool
    """True while requests are served."""
    problem: str = ""
    """Why they are not; empty while they are, and where an older coordinator does not say."""
    failed: bool = False
    """True when it cannot be served as it is; an operator must act."""
    has_tokenizer: bool
    """Whether the model has a tokenizer; without one, only token ids are served."""
    stages: tuple[StageStatus, ...]
    """All servers of all stages in pipeline order, the servers of one stage together."""
    num_running: int
    """Requests that have a KV slot."""
    num_waiting: int
    """Requests that wait for one."""
    max_num_seqs: int
    """Most requests that have a KV slot at once."""
    num_kv_blocks: int
    """KV blocks of the scheduler's ledger, which mirrors the smallest stage."""
    num_free_kv_blocks: int
    """Blocks that no running request holds."""
    num_cached_kv_blocks: int
    """Free blocks that hold prefixes; given up as soon as a request wants them."""
    max_model_len: int
    """Most tokens of one request, prompt and output together."""
    num_finished: int
    """Requests ended, by any cause."""
    num_generated_tokens: int
    num_preemptions: int
    """Times that a request gave up its KV to others; replays after a fault do not count."""
    num_prefix_query_tokens: int
    """Tokens of all prompts that were looked up in the prefix cache."""
    num_prefix_hit_tokens: int
    """Tokens of `num_prefix_query_tokens` that the prefix cache held."""
    num_draft_tokens: int
    """Guessed tokens that were checked in the pass that computed the next one."""
    num_accepted_draft_tokens: int
    """Tokens of `num_draft_tokens` that were right."""
    tokens_per_second: float
    """Over the last ten seconds, all requests together; it travels as a float32, and has
    no more digits than one keeps."""

    @property
    def state(self) -> ModelState:
        """Whether it is served."""
        if self.ready:
            return ModelState.SERVING
        return ModelState.FAILED if self.failed else ModelState.LOADING

    @property
    def pipeline_stages(self) -> tuple[StageStatus, ...]:
        """The first server of every stage, in pipeline order."""
        return tuple({stage.index: stage for stage in reversed(self.stages)}.values())[::-1]

    @property
    def emulated(self) -> bool:
        """True when a stage takes the time of a device that is not there."""
        return any(stage.emulated for stage in self.stages)


@dataclass(frozen=True, slots=True, kw_only=True)
class CoordinatorStatus(ModelStatus):
    """A coordinator, and what `ModelStatus` says of its only model, or of the first of several.

    `ready` is of the coordinator: true while requests of every model are served. The defaults are
    what a coordinator of this version says of its own process.
    """

    models: tuple[ModelStatus, ...]
    """Every model that is served; at least one."""
    version: str = __version__
    """Version of the coordinator's software."""
    pid: int = field(default_factory=os.getpid)
    """On the coordinator's own machine."""

    def of_model(self, name: str | None) -> ModelStatus:
        """The state of one model.

        Args:
            name: One of its names. None: the only model.

        Raises:
            InvalidArgumentError: None is named, and there are several.
            ModelNotFoundError: No model has that name.
        """
        names = [one for model in self.models for one in model.names]
        if name is None:
            if len(self.models) > 1:
                raise unnamed(len(self.models), names)
            return self.models[0]
        for model in self.models:
            if name in model.names:
                return model
        raise not_found(name, len(self.models), names)

    @classmethod
    def of(cls, models: Sequence[ModelStatus]) -> Self:
        """The state of this process, which serves these models.

        Args:
            models: At least one; of the first is what the coordinator says of a model.
        """
        first = {one.name: getattr(models[0], one.name) for one in fields(ModelStatus)}
        is_ready = all(model.ready for model in models)
        return cls(**{**first, "ready": is_ready}, models=tuple(models))
