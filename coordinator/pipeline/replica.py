"""One server of a stage: its link, its `StageInfo`, and whether a pipeline uses it."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from coordinator.pipeline.pipeline import Pipeline
from coordinator.pipeline.stage_link import StageLink
from coordinator.pipeline.weights import differing
from stagecoach.contract.cluster_status import StageState
from stagecoach.contract.errors import IncompatibleError
from stagecoach.contract.stage_info import StageInfo

_SAME = (
    "protocol_version",
    "fingerprint",
    "layers",
    "num_model_layers",
    "hidden_size",
    "vocab_size",
    "precision",
    "kv_block_size",
)
_AT_LEAST = (
    *("num_kv_blocks", "max_num_seqs", "max_num_batched_tokens", "max_model_len"),
    *("answers_prompt_logits", "answers_hidden_sums"),
)
_SAME_BITS = 0.01
"""Share by which bits of a weight may differ: padding depends on the device."""


@dataclass(slots=True, kw_only=True, eq=False)
class Replica:
    """One server of a stage; other servers of the same stage can take its place."""

    link: StageLink
    stage_index: int = 0
    """Place in the pipeline, once that is known."""
    info: StageInfo | None = None
    """What it said last; None when it has never been reached."""
    is_lost: bool = True
    """True from a loss, or from the start, until its stream is open."""
    is_misfit: bool = False
    """True when what answers there now is another stage than it should be."""
    problem: str = ""
    """Why it could not be connected last; empty when it is connected."""
    pipeline: Pipeline | None = None
    """The one that it serves; None when it is not connected, or to spare."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when its link went down."""

    @property
    def address(self) -> str:
        """HOST:PORT."""
        return self.link.address

    async def identify(self, expected: StageInfo) -> StageInfo:
        """Asks what answers there now, which must still fit.

        Raises:
            IncompatibleError: It is another stage; see `check_fits`.
            StagecoachError: See `StageLink.get_info`.
        """
        self.is_misfit = False
        try:
            found = await self.link.get_info()
            check_fits(self.address, expected, found, is_back=self.info is not None)
        except IncompatibleError:
            self.is_misfit = True
            raise
        return found

    @property
    def state(self) -> StageState:
        """State of its link, for operators."""
        if self.link.is_open:
            return StageState.READY
        return StageState.LOST if self.is_lost else StageState.CONNECTING


def narrowest(infos: Sequence[StageInfo]) -> StageInfo:
    """What every server of a stage can hold."""
    return replace(infos[0], **{what: min(getattr(i, what) for i in infos) for what in _AT_LEAST})


def check_fits(
    address: str, expected: StageInfo, found: StageInfo, *, is_back: bool = False
) -> None:
    """Checks that a server can stand for its stage.

    Args:
        address: Address of the server.
        expected: What every server of the stage is, and can at least hold.
        found: What this one says.
        is_back: It was there before.

    Raises:
        IncompatibleError: It is another stage, or computes other numbers, or holds less.
    """
    has = "came back with" if is_back else "has"
    for what in _SAME:
        wanted, given = getattr(expected, what), getattr(found, what)
        if given != wanted:
            raise _misfit(address, f"{has} {what} {given}, expected {wanted}")
    for what in _AT_LEAST:
        wanted, given = getattr(expected, what), getattr(found, what)
        if given < wanted:
            raise _misfit(address, f"{has} {what} {given}, needs at least {wanted}")
    bits = expected.bits_per_weight, found.bits_per_weight
    if bits[0] and bits[1] and abs(bits[1] / bits[0] - 1) > _SAME_BITS:
        raise _misfit(
            address,
            f"{has} weights of {bits[1]:.2f} bits each, expected {bits[0]:.2f}: one of both keeps "
            "what the file has in more bits; give both the same --weights",
        )
    if parts := differing(found, expected):
        raise _misfit(
            address,
            f"{has} other weights of the same shape than those that the stages agreed in: they "
            f"differ in {parts}",
        )


def _misfit(address: str, problem: str) -> IncompatibleError:
    return IncompatibleError(f"stage {address} {problem}", stage=address)
