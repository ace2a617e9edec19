"""Runs a micro-batch in parts where the device has no memory for the whole of it.

A part is a range of the micro-batch's rows. A slice that is cut is a prefill in two chunks, and the
parts run in the order of their rows, so that the second chunk finds the KV of the first.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch

from stage_server.compute.device_failures import device_failures
from stage_server.core.batch import (
    ForwardBatch,
    ForwardOutput,
    HiddenSum,
    LogitsRow,
    PromptLogits,
    SequenceSlice,
)
from stage_server.core.engine import Launched, finished
from stage_server.kv_cache.slot_tables import BlockPlan
from stagecoach.contract.errors import DeviceMemoryError
from stagecoach.contract.hidden_sums import HiddenSumRequest
from stagecoach.contract.prompt_logits import PromptLogitsRequest

NUM_STEPS_TO_GROW = 64
"""So many micro-batches are run in parts before parts of twice the size are tried."""

_log = logging.getLogger(__name__)


class DividedSteps:
    """Runs micro-batches, whole ones as long as they fit.

    The size that did not fit is remembered, and later micro-batches are cut before they fail. Those
    that hold single tokens alone have a size of their own: they need memory for their contexts
    rather than for their rows.

    Args:
        launch: Launches a micro-batch; to do so twice, whole or in part, changes nothing.
        device: Where it is computed.
    """

    def __init__(
        self, launch: Callable[[ForwardBatch, BlockPlan], Launched], device: torch.device
    ) -> None:
        self._launch = launch
        self._device = device
        self._decode_size, self._prefill_size = _Size(), _Size()

    def launch(self, batch: ForwardBatch, plan: BlockPlan) -> Launched:
        """Launches a micro-batch, in as many parts as it takes.

        Memory is taken at launch. What is launched is never run again, since later micro-batches
        may own its blocks when it is finished. A part is finished before the next one is launched,
        because it keeps memory until then; only the last part is left to the device.

        Raises:
            DeviceMemoryError: A single row does not fit, from which nothing is learned about sizes.
            DeviceLostError: As `device_failures`.
        """
        only_singles = all(piece.is_single_token for piece in batch.slices)
        size = self._decode_size if only_singles else self._prefill_size
        known = size.max_rows
        try:
            parts = self._launched_parts(batch, plan, size)
        except DeviceMemoryError:
            size.max_rows = known
            raise
        forward = _UnfinishedParts(batch, parts, self._device)
        return forward.finish() if self._device.type == "cpu" else forward

    def _launched_parts(
        self, batch: ForwardBatch, plan: BlockPlan, size: "_Size"
    ) -> Sequence["_Part"]:
        """Launches the parts in their order; all but the last one are finished."""
        todo = size.cut(0, batch.num_tokens)
        parts: list[_Part] = []
        while todo:
            start, end = todo.pop()
            part, part_plan = rows_between(batch, plan, start, end)
            launched = self._launched(part, part_plan)
            if launched is not None:
                if todo:
                    launched = self._finished(launched)
                parts.append(_Part(start, launched))
                continue
            size.shrink((end - start) // 2)
            _log.warning(
                "a micro-batch does not fit the memory of the device and is run in parts",
                extra={"device": str(self._device), "rows": end - start},
            )
            todo = size.cut(start, batch.num_tokens)
        return parts

    def _finished(self, launched: Launched) -> ForwardOutput:
        with device_failures(self._device):
            return finished(launched)

    def _launched(self, batch: ForwardBatch, plan: BlockPlan) -> Launched | None:
        """Launches a part of a step; None when it does not fit and can be cut."""
        try:
            with device_failures(self._device):
                return self._launch(batch, plan)
        except DeviceMemoryError:
            if batch.num_tokens == 1:
                raise
            return None


class _Part(NamedTuple):
    """Rows of a micro-batch that are launched, or done."""

    first_row: int
    launched: Launched


class _UnfinishedParts:
    """A micro-batch that was launched in parts, the last of which ends last."""

    def __init__(self, batch: ForwardBatch, parts: Sequence[_Part], device: torch.device) -> None:
        self._batch = batch
        self._parts = parts
        self._device = device

    def due_in_s(self) -> float:
        last = self._parts[-1].launched
        return 0.0 if isinstance(last, ForwardOutput) else last.due_in_s()

    def finish(self) -> ForwardOutput:
        with device_failures(self._device):
            return _joined(
                self._batch, [(part.first_row, finished(part.launched)) for part in self._parts]
            )


class _Size:
    """How many rows a part may have.

    Attributes:
        max_rows: Rows that a part may have; None: as many as there are.
    """

    def __init__(self) -> None:
        self.max_rows: int | None = None
        self._num_cut = 0

    def cut(self, first_row: int, end: int) -> list[tuple[int, int]]:
        """Cuts the rows `[first_row, end)` of a micro-batch into ranges, the first one last."""
        if self.max_rows is None or end - first_row <= self.max_rows:
            return [(first_row, end)]
        if self._num_cut == NUM_STEPS_TO_GROW:
            self.max_rows, self._num_cut = 2 * self.max_rows, 0
        self._num_cut += 1
        starts = range(first_row, end, self.max_rows)
        return [(start, min(start + self.max_rows, end)) for start in reversed(starts)]

    def shrink(self, num_rows: int) -> None:
        """Takes note that more rows than these did not fit."""
        self.max_rows = max(1, num_rows)
        self._num_cut = 0


def rows_between(
    batch: ForwardBatch, plan: BlockPlan, start: int, end: int
) -> tuple[ForwardBatch, BlockPlan]:
    """Returns the micro-batch of the rows `[start, end)` of one, without slot operations.

    Args:
        batch: The whole.
        plan: Its blocks; those of the part hold its slices, or more.
        start: First row.
        end: One past the last row.
    """
    if (start, end) == (0, batch.num_tokens):
        return batch, plan
    slices, tables = [], []
    first_row = 0
    for piece, table in zip(batch.slices, plan.block_tables, strict=True):
        low, high = max(start - first_row, 0), min(end - first_row, piece.num_tokens)
        if low < high:
            position = piece.start_position + low
            slices.append(SequenceSlice(piece.kv_slot, position, high - low))
            tables.append(table)
        first_row += piece.num_tokens
    part = ForwardBatch(
        slices=tuple(slices),
        token_ids=None if batch.token_ids is None else batch.token_ids[start:end],
        hidden_states=None if batch.hidden_states is None else batch.hidden_states[start:end],
        logits=tuple(
            replace(request, row=request.row - start)
            for request in batch.logits
            if start <= request.row < end
        ),
        prompt_logits=tuple(_prompt_rows_between(batch.prompt_logits, start, end)),
        hidden_sums=tuple(_sums_between(batch.hidden_sums, start, end)),
    )
    if start:  # the part that begins with the first row makes the blocks ready for all
        plan = replace(plan, new_blocks=(), copies=())
    return part, replace(plan, block_tables=tuple(tables))


def _prompt_rows_between(
    requests: Sequence[PromptLogitsRequest], start: int, end: int
) -> Iterator[PromptLogitsRequest]:
    """What of the requests lies in the rows `[start, end)`; rows count from `start`."""
    for request in requests:
        low, high = max(start, request.first_row), min(end, request.end_row)
        if low < high:
            ids = request.token_ids[low - request.first_row : high - request.first_row]
            yield replace(request, first_row=low - start, token_ids=ids)


def _sums_between(
    requests: Sequence[HiddenSumRequest], start: int, end: int
) -> Iterator[HiddenSumRequest]:
    """What of the requests lies in the rows `[start, end)`; rows count from `start`."""
    for request in requests:
        low, high = max(start, request.first_row), min(end, request.end_row)
        if low < high:
            yield HiddenSumRequest(first_row=low - start, num_rows=high - low)


def _joined(batch: ForwardBatch, outputs: Sequence[tuple[int, ForwardOutput]]) -> ForwardOutput:
    """Puts the outputs of parts together, each with its first row, in the order of rows."""
    if len(outputs) == 1:
        return outputs[0][1]
    hidden = [output.hidden_states for _, output in outputs if output.hidden_states is not None]
    # The rows of a part have the order of their requests.
    rows_of: dict[int, list[LogitsRow]] = {}
    for start, output in outputs:
        for row in output.logits:
            rows_of.setdefault(start + row.row, []).append(replace(row, row=start + row.row))
    return ForwardOutput(
        hidden_states=torch.cat(hidden) if hidden else None,
        logits=tuple(rows_of[request.row].pop(0) for request in batch.logits),
        prompt_logits=tuple(_joined_prompts(batch.prompt_logits, outputs)),
        hidden_sums=tuple(_joined_sums(batch.hidden_sums, outputs)),
    )


def _joined_prompts(
    requests: Sequence[PromptLogitsRequest], outputs: Sequence[tuple[int, ForwardOutput]]
) -> Iterator[PromptLogits]:
    """Puts the rows of each request together, which lie in one or more parts, one after another."""
    parts = [
        (start + part.first_row, part) for start, output in outputs for part in output.prompt_logits
    ]
    for request in requests:
        own = [part for row, part in parts if request.first_row <= row < request.end_row]
        yield PromptLogits(
            first_row=request.first_row,
            log_sum_exps=torch.cat([part.log_sum_exps for part in own]),
            token_logits=torch.cat([part.token_logits for part in own]),
            token_ranks=torch.cat([part.token_ranks for part in own]),
            candidate_ids=torch.cat([part.candidate_ids for part in own]),
            candidate_logits=torch.cat([part.candidate_logits for part in own]),
        )


def _joined_sums(
    requests: Sequence[HiddenSumRequest], outputs: Sequence[tuple[int, ForwardOutput]]
) -> Iterator[HiddenSum]:
    """Adds up the sums of each request, whose rows lie in one or more parts."""
    parts = [
        (start + part.first_row, part.sum)
        for start, output in outputs
        for part in output.hidden_sums
    ]
    for request in requests:
        own = [part for row, part in parts if request.first_row <= row < request.end_row]
        yield HiddenSum(first_row=request.first_row, sum=torch.stack(own).sum(dim=0))
