"""Mirrors the block arithmetic of the smallest stage, so that no stage ever runs out of KV blocks.

Counts only: which blocks a sequence has is the stage's own affair.
"""


class KvLedger:
    """Number of KV blocks that each running sequence holds.

    Args:
        num_blocks: Blocks of the smallest stage.
        block_size: Tokens a block.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        """Starts with every block free."""
        self._num_total_blocks = num_blocks
        self._block_size = block_size
        self._num_free_blocks = num_blocks
        self._held: dict[str, int] = {}
        self._limits: dict[str, int] = {}
        self._num_growing = 0

    @property
    def num_free_blocks(self) -> int:
        """Blocks that no sequence holds."""
        return self._num_free_blocks

    def num_held_blocks(self, request_id: str) -> int:
        """Blocks that a sequence holds; 0 for one that is not known."""
        return self._held.get(request_id, 0)

    def admit(self, request_id: str, num_tokens: int, max_num_tokens: int) -> bool:
        """Takes the blocks of `num_tokens` tokens for a new sequence.

        Only if one block is left for every sequence that may still grow. Without that headroom
        sequences are admitted that the next steps preempt again: in a simulation with four times
        more requests than fit, a fifth to a third of all tokens were computed twice.

        Args:
            request_id: A sequence that holds no blocks.
            num_tokens: Its tokens now; at least 1.
            max_num_tokens: Tokens that it may grow to.

        Returns:
            False when they do not fit; then nothing changed.
        """
        num_blocks = self._blocks_of(num_tokens)
        if num_blocks + self._num_growing > self._num_free_blocks:
            return False
        limit = self._blocks_of(max_num_tokens)
        self._held[request_id] = num_blocks
        self._limits[request_id] = limit
        self._num_free_blocks -= num_blocks
        self._num_growing += num_blocks < limit
        return True

    def grow(self, request_id: str, num_tokens: int) -> bool:
        """Takes the blocks that an admitted sequence lacks to hold `num_tokens` tokens.

        Never gives any back.

        Returns:
            False when they do not fit; then nothing changed.
        """
        held = self._held[request_id]
        if num_tokens <= held * self._block_size:
            return True
        num_blocks = self._blocks_of(num_tokens)
        if num_blocks - held > self._num_free_blocks:
            return False
        self._held[request_id] = num_blocks
        self._num_free_blocks -= num_blocks - held
        self._num_growing -= num_blocks == self._limits[request_id]
        return True

    def release(self, request_id: str) -> None:
        """Gives back all blocks of an admitted sequence."""
        held = self._held.pop(request_id)
        self._num_free_blocks += held
        self._num_growing -= held < self._limits.pop(request_id)

    def check_integrity(self, num_tokens: dict[str, int]) -> None:
        """Asserts that every block is accounted for.

        Args:
            num_tokens: By request id, the tokens that the stages hold for each running sequence.
        """
        assert self._num_free_blocks >= 0, "more blocks are held than there are"
        assert self._num_free_blocks + sum(self._held.values()) == self._num_total_blocks
        assert self._held.keys() == self._limits.keys() == num_tokens.keys(), (
            "who runs, and no other"
        )
        for request_id, held in self._held.items():
            assert self._blocks_of(num_tokens[request_id]) <= held <= self._limits[request_id]
        num_growing = sum(held < self._limits[key] for key, held in self._held.items())
        assert num_growing == self._num_growing

    def _blocks_of(self, num_tokens: int) -> int:
        return -(-num_tokens // self._block_size)
