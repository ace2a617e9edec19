"""An engine with a device that is done when a test says so."""

import threading
from typing import NamedTuple

from stage_server.core.batch import ForwardBatch, ForwardOutput
from stage_server.core.engine import UnfinishedForward
from tests.contract.arithmetic_engine import ArithmeticEngine, arithmetic_info
from tests.contract.stage_builders import DEADLINE_S


class Device:
    """Computes the micro-batches that it is given, numbered from 0, in their order."""

    def __init__(self) -> None:
        self.log: list[str] = []
        """What the engine did, in order."""
        self.errors: dict[int, Exception] = {}
        """What it fails with, by the micro-batch."""
        self._num_done = 0
        self._changed = threading.Condition()

    def complete(self, num_done: int) -> None:
        """Is done with so many of them, all in all."""
        with self._changed:
            self._num_done = num_done
            self._changed.notify_all()

    def is_done(self, number: int) -> bool:
        return number < self._num_done

    def wait(self, number: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.is_done(number), DEADLINE_S)
        self.log.append(f"finish {number}")
        if number in self.errors:
            raise self.errors[number]


class DeferredForward(NamedTuple):
    """One of them."""

    device: Device
    number: int
    output: ForwardOutput

    def due_in_s(self) -> float:
        return 0.0 if self.device.is_done(self.number) else 0.001

    def finish(self) -> ForwardOutput:
        self.device.wait(self.number)
        return self.output


class DeferringEngine(ArithmeticEngine):
    """Gives a device what `ArithmeticEngine` computes at once."""

    def __init__(self) -> None:
        super().__init__(arithmetic_info())
        self.device = Device()

    def launch(self, batch: ForwardBatch) -> UnfinishedForward:  # type: ignore[override]
        output = super().launch(batch)
        number = self.num_forwards - 1
        self.device.log.append(f"launch {number}")
        return DeferredForward(self.device, number, output)

    def free_all_slots(self) -> None:
        super().free_all_slots()
        self.device.log.append("free")
