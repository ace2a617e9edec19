"""Decides at start which decode steps run as CUDA graphs: each is recorded, run and compared.

A graph pays where launching a step takes longer than computing it: small models, few bits a weight,
fast cards, slow hosts. That is measured on the card, beside the same step launched plainly. Sizes
are tried from the smallest on, because what a graph saves is the same for all, and a step of more
sequences takes longer. At the first one that saves too little, differs or cannot be recorded, the
stage says so, and larger steps are launched plainly.
"""

import logging
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch

from stage_server.compute.decode_graphs import CudaRecorder, DecodeGraphs, graph_sizes
from stage_server.compute.device_failures import device_failures
from stage_server.compute.forward_pass import ForwardPass
from stage_server.compute.kernel_check import difference, tolerance
from stage_server.compute.static_decodes import StaticDecodes
from stage_server.core.batch import SequenceSlice
from stage_server.kv_cache.kv_pool import NewKv
from stage_server.kv_cache.slot_tables import BlockPlan
from stage_server.kv_cache.step_indices import StepIndices
from stagecoach.contract.errors import DeviceMemoryError
from stagecoach.roofline.kv_memory import RESERVE_BYTES

MIN_GAIN = 0.05
"""Share of a step's time that a graph has to save."""

MAX_GRAPH_BYTES = RESERVE_BYTES // 2
"""What all graphs may take of the memory that KV leaves alone."""

_NUM_RUNS = 5
"""The quickest counts."""

_NUM_SHARED_BLOCKS = 2
"""Blocks that all sequences of a trial begin with, so that they attend to more than themselves."""

_FILLED_ROWS = 512
"""Rows of a trial's keys and values that are made at once, which take memory beside those kept."""

_log = logging.getLogger(__name__)


class Meter(Protocol):
    """Asks a device how it is."""

    def seconds(self, run: Callable[[], object]) -> float:
        """How long the device and the host take together for what `run` launches."""
        ...

    def free_bytes(self) -> int:
        """Memory that nobody holds."""
        ...

    def check(self) -> None:
        """Raises where the device computes no more."""
        ...


class CardMeter:
    """Asks a card."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def seconds(self, run: Callable[[], object]) -> float:
        """The quickest of a few runs."""
        times = []
        for _ in range(_NUM_RUNS):
            self.check()
            started_s = time.perf_counter()
            run()
            self.check()
            times.append(time.perf_counter() - started_s)
        return min(times)

    def free_bytes(self) -> int:
        """What neither tensors nor graphs hold, of any process."""
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(self._device)[0]

    def check(self) -> None:
        """Waits for the card.

        Raises:
            torch.AcceleratorError: The card is lost.
        """
        torch.cuda.synchronize(self._device)


def find_graphs(
    forward_pass: ForwardPass, *, scratch_block: int, max_rows: int, max_num_positions: int
) -> DecodeGraphs | None:
    """Returns the graphs by which a stage's decode steps run; None: they are launched plainly.

    Takes a second or a few. The content of blocks that no sequence holds is lost. Where there is no
    memory for graphs there are none.

    Args:
        forward_pass: Forward pass of the stage, on a card, with kernels.
        scratch_block: A block of the pool that no sequence ever holds.
        max_rows: Sequences of the largest step.
        max_num_positions: Positions of the longest sequence.

    Raises:
        DeviceLostError: The card is lost.
    """
    stack, sizes = forward_pass.stack, graph_sizes(max_rows)
    graphs: DecodeGraphs | None = None
    objection: Objection | None
    try:
        with device_failures(stack.device):
            static = StaticDecodes(
                stack,
                forward_pass.pool,
                scratch_block=scratch_block,
                max_rows=sizes[-1],
                max_num_positions=max_num_positions,
            )
            graphs = DecodeGraphs(static, CudaRecorder())
            objection = record_useful(graphs, forward_pass, sizes, CardMeter(stack.device))
    except DeviceMemoryError:
        text = "there is no memory for what graphs read and write"
        graphs, objection = None, Objection(text, is_fault=False)
    recorded = () if graphs is None else graphs.sizes
    _log.log(
        logging.WARNING if objection is not None and objection.is_fault else logging.INFO,
        "decode steps run as CUDA graphs" if recorded else "decode steps run without graphs",
        extra={"sizes": recorded, "reason": None if objection is None else objection.reason},
    )
    return graphs if recorded else None


class Objection(NamedTuple):
    """What speaks against a graph."""

    reason: str
    """Says it, for people."""
    is_fault: bool
    """Whether something failed or differed; else the graph costs more than it is worth."""


@torch.inference_mode()
def record_useful(
    graphs: DecodeGraphs, forward_pass: ForwardPass, sizes: Sequence[int], meter: Meter
) -> Objection | None:
    """Records the sizes that are worth it.

    Returns:
        What speaks against the next one; None: all of them are.

    Raises:
        Exception: What `meter.check` raises.
    """
    free_bytes = meter.free_bytes()
    for size in sizes:
        try:
            graphs.record(size)
            objection = _objection(graphs, forward_pass, size, meter)
            taken_bytes = free_bytes - meter.free_bytes()
            if objection is None and taken_bytes > MAX_GRAPH_BYTES:
                objection = Objection(
                    f"graphs would take {taken_bytes} bytes, and may take {MAX_GRAPH_BYTES}",
                    is_fault=False,
                )
        except Exception as error:  # torch and what it calls raise errors of every class
            meter.check()
            is_fault = not isinstance(error, torch.OutOfMemoryError)
            objection = Objection(_text_of(error), is_fault=is_fault)
        if objection is not None:
            graphs.drop(size)
            return objection._replace(reason=f"batch {size}: {objection.reason}")
    return None


def _text_of(error: BaseException | None) -> str:
    """Tells of an error and of those before it: of a recording CUDA says at last that it failed."""
    texts = []
    while error is not None:
        texts.append(f"{type(error).__name__}: {' '.join(str(error).split())}")
        error = error.__context__
    return ", after ".join(texts)


def _objection(
    graphs: DecodeGraphs, forward_pass: ForwardPass, size: int, meter: Meter
) -> Objection | None:
    """Says what speaks against a graph, compared with the same step launched plainly."""
    trial = _trial(forward_pass, size, graphs.max_num_positions)

    def run_graph() -> torch.Tensor:
        return graphs.run(trial.indices, size)

    def run_plain() -> torch.Tensor:
        return forward_pass.run_layers(trial.slices, trial.plan, trial.indices)

    differs_by = difference(run_graph(), run_plain())
    if not differs_by <= tolerance(forward_pass.stack.precision):  # a NaN differs too
        text = f"the graph differs from the plain step by {differs_by:.2g}"
        return Objection(text, is_fault=True)
    graph_s, plain_s = meter.seconds(run_graph), meter.seconds(run_plain)
    if graph_s > (1 - MIN_GAIN) * plain_s:
        text = f"the graph takes {graph_s * 1e3:.3f} ms, the plain step {plain_s * 1e3:.3f} ms"
        return Objection(text, is_fault=False)
    return None


class _Trial(NamedTuple):
    """A decode step."""

    slices: tuple[SequenceSlice, ...]
    plan: BlockPlan
    indices: StepIndices


def _trial(forward_pass: ForwardPass, size: int, max_num_positions: int) -> _Trial:
    """Makes a step that a graph of this size computes, with a row left over where it can be.

    Each sequence has a block of its own, so a small pool holds fewer of them than there are rows.
    """
    stack, pool = forward_pass.stack, forward_pass.pool
    num_held = pool.num_blocks - 1  # all but the scratch block
    count = max(1, min(size - 1, num_held))
    num_before_last = (max_num_positions - 1) // pool.block_size
    num_shared = min(_NUM_SHARED_BLOCKS, num_before_last, num_held - count)
    _fill(forward_pass, num_shared + count)
    held = num_shared * pool.block_size
    room = min(pool.block_size, max_num_positions - held)
    slices = tuple(SequenceSlice(i, held + i % room, 1) for i in range(count))
    shared = tuple(range(num_shared))
    tables = tuple((*shared, num_shared + i) for i in range(count))
    plan = BlockPlan(block_tables=tables, new_blocks=(), copies=())
    generator = torch.Generator().manual_seed(size)
    inputs = (
        torch.randint(stack.config.vocab_size, (count,), generator=generator)
        if stack.is_first
        else torch.randn(count, stack.config.hidden_size, generator=generator).to(stack.wire_dtype)
    )
    indices = StepIndices.of(
        slices,
        plan,
        inputs,
        block_size=pool.block_size,
        device=stack.device,
        max_gathered_tokens=None,
    )
    return _Trial(slices, plan, indices)


def _fill(forward_pass: ForwardPass, num_blocks: int) -> None:
    """Writes random keys and values into the first blocks of all layers."""
    stack, pool = forward_pass.stack, forward_pass.pool
    slots = torch.arange(num_blocks * pool.block_size, device=stack.device)
    for index in range(len(stack.layers)):
        layer = pool.layer(index)
        for first in range(0, len(slots), _FILLED_ROWS):
            rows = slots[first : first + _FILLED_ROWS]
            # [2, num_rows, num_kv_heads, head_dim]
            shape = 2, len(rows), *layer.keys.rows.shape[1:]
            new = torch.randn(shape, dtype=stack.compute_dtype, device=stack.device)
            layer.store(rows, NewKv(*new.unbind()))
