"""Faults on demand: makes an engine's forwards go wrong as a test asks. Unsafe by purpose.

Only `--unsafe-fault-hooks FILE` puts this around an engine; without the flag nothing here is
imported. Before each forward the wrapper looks for FILE, a JSON object that names one fault; see
`PlannedFault`. The stage says in its log and in the device of GetInfo that it can be told to fail.
"""

import json
import logging
import math
import os
import signal
import threading
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import NoReturn

import torch

from stage_server.compute.device_failures import device_failures
from stage_server.core.batch import ForwardBatch
from stage_server.core.engine import Launched, StageEngine
from stagecoach.contract.errors import InvalidArgumentError
from stagecoach.contract.stage_info import StageInfo

_log = logging.getLogger(__name__)


class Fault(StrEnum):
    """What can go wrong."""

    RAISE = "raise"
    """An exception of no particular kind, before the forward has any effect."""
    OUT_OF_MEMORY = "out-of-memory"
    """What torch raises when the device has no memory left."""
    DEVICE_ERROR = "device-error"
    """What torch raises when the device is unusable from then on."""
    HANG = "hang"
    """A forward that never returns."""
    KILL = "kill"
    """The process is gone in the middle of the forward."""
    NAN_ROW = "nan-row"
    """The last row of the hidden states that come in is NaN."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedFault:
    """One fault and when it strikes."""

    fault: Fault
    token_id: int | None = None
    """Strikes only a micro-batch that holds this token; for the first stage. None: any."""
    repeats: bool = False
    """False: strikes once, and the file is removed just before."""

    @classmethod
    def parse(cls, text: str) -> "PlannedFault":
        """Reads the object that the file holds.

        Raises:
            InvalidArgumentError: It is not such an object.
        """
        try:
            fields = json.loads(text)
            return cls(**{**fields, "fault": Fault(fields["fault"])})
        except (ValueError, TypeError, KeyError) as error:
            raise InvalidArgumentError(
                f"the file of the fault hooks does not hold a planned fault: {error}",
                field="unsafe_fault_hooks",
            ) from error

    def strikes(self, batch: ForwardBatch) -> bool:
        """True when it is this micro-batch's turn to fail."""
        if self.token_id is None:
            return bool(batch.slices)
        return batch.token_ids is not None and bool((batch.token_ids == self.token_id).any())


class FaultHooks:
    """Implements `StageEngine` around another one, and fails where `path` says so.

    Args:
        engine: Does the work. Warming up never fails.
        path: Where the next fault is looked for.
    """

    def __init__(self, engine: StageEngine, path: Path) -> None:
        self._engine = engine
        self._path = path
        _log.warning(
            "unsafe fault hooks are on: whoever writes the file makes this stage fail",
            extra={"file": str(path)},
        )

    @property
    def info(self) -> StageInfo:
        """What the engine is, and that it has hooks."""
        about = self._engine.info
        return replace(about, device=f"{about.device}, with unsafe fault hooks for tests")

    @property
    def num_free_kv_blocks(self) -> int:
        """Free blocks, as a snapshot."""
        return self._engine.num_free_kv_blocks

    @property
    def num_held_kv_slots(self) -> int:
        """Slots in use, as a snapshot."""
        return self._engine.num_held_kv_slots

    def warm_up(self) -> None:
        """Warms the engine up, without hooks."""
        self._engine.warm_up()

    def free_all_slots(self) -> None:
        """Gives back every slot."""
        self._engine.free_all_slots()

    def launch(self, batch: ForwardBatch) -> Launched:
        """Launches a forward, or fails as planned.

        Raises:
            InvalidArgumentError: The plan cannot be read, or is not for this stage.
        """
        planned = self._planned(batch)
        if planned is None:
            return self._engine.launch(batch)
        _log.warning("fault hook strikes", extra={"fault": planned.fault.value})
        if planned.fault is Fault.NAN_ROW:
            return self._engine.launch(_with_nan_row(batch))
        return _fail(planned.fault)

    def _planned(self, batch: ForwardBatch) -> PlannedFault | None:
        """The fault that strikes this micro-batch, taken off the plan."""
        try:
            text = self._path.read_text()
        except FileNotFoundError:
            return None
        planned = PlannedFault.parse(text)
        if not planned.strikes(batch):
            return None
        if not planned.repeats:
            self._path.unlink()
        return planned


def _with_nan_row(batch: ForwardBatch) -> ForwardBatch:
    if batch.hidden_states is None:
        raise InvalidArgumentError(
            f"{Fault.NAN_ROW} is for a stage that takes hidden states", field="unsafe_fault_hooks"
        )
    hidden_states = batch.hidden_states.clone()
    hidden_states[-1] = math.nan
    return replace(batch, hidden_states=hidden_states)


def _fail(fault: Fault) -> NoReturn:
    with device_failures(torch.device("cpu")):  # as inside an engine
        match fault:
            case Fault.OUT_OF_MEMORY:
                raise torch.OutOfMemoryError("planned")
            case Fault.DEVICE_ERROR:
                raise torch.AcceleratorError("planned")
            case Fault.HANG:
                threading.Event().wait()
            case Fault.KILL:
                os.kill(os.getpid(), signal.SIGKILL)
    raise RuntimeError(f"planned: {fault}")
