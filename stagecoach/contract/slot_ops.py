"""What a coordinator orders a stage to do with KV slots between forwards. Standard library only.

Operations travel with a micro-batch and are applied in order before its forward, on every stage
alike.
"""

from typing import NamedTuple


class FreeSlot(NamedTuple):
    """Empties a slot; one that is empty stays so."""

    kv_slot: int


class TruncateSlot(NamedTuple):
    """Keeps the first `num_tokens` tokens of a slot, which holds at least as many."""

    kv_slot: int
    num_tokens: int


class ForkSlot(NamedTuple):
    """Gives an empty slot the KV of the first `num_tokens` tokens of another, without computing it.

    Afterwards both slots are independent: what runs in one never shows in the other. `num_tokens`
    is at least 1 and at most what the source holds.

    A stage takes any such number. It shares the blocks, and copies a block that both hold before it
    writes into it. The coordinator forks whole blocks only. The first slice in the target then
    starts a new block, so no stage copies, and the KV ledger counts no copies.
    """

    source_kv_slot: int
    target_kv_slot: int
    num_tokens: int


SlotOp = FreeSlot | TruncateSlot | ForkSlot
