"""What a check is asked to check, and what a module of a check has to have."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from benchmarks.gpu_check.messages import Fact
from benchmarks.gpu_check.report import Figure
from stage_server.compute.cuda_cards import ChosenDevice
from stage_server.compute.devices import precision_on
from stagecoach.contract.errors import IncompatibleError
from stagecoach.contract.precision import DType
from stagecoach.model_files.config import ModelConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A device, and how thoroughly it is checked."""

    chosen: ChosenDevice
    folder: Path
    """For files of the check, its own and empty."""
    is_quick: bool
    """True: few and tiny models, which say that the program works and little of a card."""

    @property
    def device(self) -> torch.device:
        """As torch has it."""
        return torch.device(self.chosen.name)

    @property
    def is_card(self) -> bool:
        """False for the CPU."""
        return self.chosen.card is not None

    def has(self, dtype: DType, config: ModelConfig) -> bool:
        """Whether the device computes such a model in that dtype; a stage refuses it otherwise."""
        try:
            precision_on(self.chosen, dtype, config)
        except IncompatibleError:
            return False
        return True


class CheckModule(Protocol):
    """A module of a check."""

    def names(self, subject: Subject) -> Sequence[str]:
        """Names the rows, before anything is measured."""
        ...

    def figures(self, subject: Subject) -> Iterator[Figure | Fact]:
        """Measures, and yields each figure as soon as it is known, under one of the names.

        Raises:
            Exception: The check fails, and what it has yielded stays.
        """
        ...
