"""An engine whose KV is a Python list a slot and whose layers are a hash: small, exact, real.

It keeps the whole contract of `StageEngine`, so that servers can be tested without a model. The
hidden state of a token is `[h] * hidden_size`, where h hashes every input of the sequence so far.
"""

import threading
from collections.abc import Callable

import torch

from stage_server.core.batch import ForwardBatch, ForwardOutput, HiddenSum, LogitsRow, SequenceSlice
from stagecoach.contract.errors import KvFullError, StaleStateError
from stagecoach.contract.layer_range import LayerRange
from stagecoach.contract.logits_request import LogitsRequest
from stagecoach.contract.precision import DType, Precision
from stagecoach.contract.slot_ops import ForkSlot, FreeSlot, SlotOp, TruncateSlot
from stagecoach.contract.stage_info import StageInfo
from tests.reduced_logits import reduce_logits

HIDDEN_SIZE = 4
VOCAB_SIZE = 32
FINGERPRINT = "f" * 64

Slots = dict[int, list[int]]

FIRST_LAYERS = LayerRange(0, 2)


def arithmetic_info(
    layers: LayerRange = FIRST_LAYERS, *, num_kv_blocks: int = 64, max_num_seqs: int = 8
) -> StageInfo:
    return StageInfo(
        model_id="arithmetic",
        fingerprint=FINGERPRINT,
        layers=layers,
        num_model_layers=6,
        hidden_size=HIDDEN_SIZE,
        vocab_size=VOCAB_SIZE,
        precision=Precision.uniform(DType.FLOAT32),
        kv_block_size=4,
        num_kv_blocks=num_kv_blocks,
        num_free_kv_blocks=num_kv_blocks,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=16,
        max_model_len=32,
        device="cpu (1 threads)",
        emulated=False,
        weight_bytes=0,
        kv_bytes=0,
    )


def hash_sequence(inputs: list[int]) -> int:
    """Order and every element count; exact in float32."""
    value = 7
    for item in inputs:
        value = (value * 31 + item + 1) % 65521
    return value


class ArithmeticEngine:
    """Implements `StageEngine`; `on_forward` runs before each forward, on the model thread."""

    def __init__(
        self, info: StageInfo, on_forward: Callable[[ForwardBatch], None] | None = None
    ) -> None:
        self._info = info
        self._slots: Slots = {}
        self._on_forward = on_forward
        self.num_forwards = 0
        self.threads: set[int] = set()
        self.warmed_up = False

    @property
    def info(self) -> StageInfo:
        return self._info

    @property
    def num_free_kv_blocks(self) -> int:
        return self._info.num_kv_blocks - self._blocks(dict(self._slots))

    @property
    def num_held_kv_slots(self) -> int:
        return len(self._slots)

    def warm_up(self) -> None:
        self.threads.add(threading.get_ident())
        self.warmed_up = True

    def launch(self, batch: ForwardBatch) -> ForwardOutput:
        self.threads.add(threading.get_ident())
        self.num_forwards += 1
        if self._on_forward is not None:
            self._on_forward(batch)
        slots = {slot: list(tokens) for slot, tokens in self._slots.items()}
        for op in batch.slot_ops:
            self._apply(op, slots)
        hashes = self._run(batch, slots)
        if self._blocks(slots) > self._info.num_kv_blocks:
            raise KvFullError(f"{self._blocks(slots)} blocks of {self._info.num_kv_blocks}")
        self._slots = slots
        if not self._info.is_last:
            if not hashes:
                return ForwardOutput()
            rows = torch.tensor(hashes, dtype=torch.float32).unsqueeze(1)
            return ForwardOutput(hidden_states=rows.expand(-1, HIDDEN_SIZE))
        return ForwardOutput(
            logits=tuple(self._reduce(hashes[request.row], request) for request in batch.logits),
            hidden_sums=tuple(
                HiddenSum(
                    first_row=one.first_row,
                    sum=torch.full((HIDDEN_SIZE,), float(sum(hashes[one.first_row : one.end_row]))),
                )
                for one in batch.hidden_sums
            ),
        )

    def free_all_slots(self) -> None:
        self.threads.add(threading.get_ident())
        self._slots = {}

    def _blocks(self, slots: Slots) -> int:
        return sum(-(-len(tokens) // self._info.kv_block_size) for tokens in slots.values())

    def _apply(self, op: SlotOp, slots: Slots) -> None:
        match op:
            case FreeSlot():
                slots.pop(op.kv_slot, None)
            case TruncateSlot():
                if op.num_tokens > len(slots.get(op.kv_slot, [])):
                    raise StaleStateError(f"slot {op.kv_slot} holds less than {op.num_tokens}")
                del slots[op.kv_slot][op.num_tokens :]
            case ForkSlot():
                if slots.get(op.target_kv_slot):
                    raise StaleStateError(f"slot {op.target_kv_slot} is not empty")
                if op.num_tokens > len(slots.get(op.source_kv_slot, [])):
                    raise StaleStateError(f"slot {op.source_kv_slot} holds too little")
                slots[op.target_kv_slot] = slots[op.source_kv_slot][: op.num_tokens]

    def _run(self, batch: ForwardBatch, slots: Slots) -> list[int]:
        if batch.token_ids is not None:
            rows = [int(item) for item in batch.token_ids]
        elif batch.hidden_states is not None:
            rows = [int(item) for item in batch.hidden_states[:, 0]]
        else:
            rows = []
        hashes = []
        for piece in batch.slices:
            held = slots.setdefault(piece.kv_slot, [])
            self._check_no_gap(piece, held)
            del held[piece.start_position :]
            for _ in range(piece.num_tokens):
                held.append(rows.pop(0))
                hashes.append(hash_sequence(held))
        return hashes

    @staticmethod
    def _check_no_gap(piece: SequenceSlice, held: list[int]) -> None:
        if piece.start_position > len(held):
            raise StaleStateError(
                f"slot {piece.kv_slot} holds {len(held)} tokens, slice starts at "
                f"{piece.start_position}"
            )

    @staticmethod
    def _reduce(value: int, request: LogitsRequest) -> LogitsRow:
        row = torch.arange(VOCAB_SIZE, dtype=torch.float32).roll(value % VOCAB_SIZE)
        return reduce_logits(row[None], [request])[0]
