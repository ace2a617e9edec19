"""The KV tensors of a stage: one preallocated pool, cut into blocks."""

from typing import NamedTuple, Self

import torch

from stage_server.kv_cache.step_indices import StepIndices
from stagecoach.contract.errors import InsufficientMemoryError

MAX_GATHERED_BYTES = 128 * 2**20
"""KV of one layer that attention gathers at once for sequences that decode, where there are no
kernels; a longer sequence is gathered alone. Reading so much takes far longer than launching the
kernels that do it."""


class KvViews(NamedTuple):
    """Keys or values of one layer, the same memory in three shapes."""

    blocks: torch.Tensor
    """`[num_blocks, block_size, num_kv_heads, head_dim]`."""
    rows: torch.Tensor
    """`[num_blocks * block_size, num_kv_heads, head_dim]`."""
    heads: torch.Tensor
    """`[1, num_kv_heads, num_blocks * block_size, head_dim]`."""

    @classmethod
    def of(cls, blocks: torch.Tensor) -> Self:
        """Makes the others of `blocks`, which is contiguous."""
        rows = blocks.view(-1, *blocks.shape[2:])
        return cls(blocks, rows, rows.transpose(0, 1).unsqueeze(0))


class LayerKv(NamedTuple):
    """Keys and values of one layer."""

    keys: KvViews
    values: KvViews


class KvPool:
    """Keys and values of all layers of a stage, in blocks of tokens.

    One tensor, `[num_layers, 2, num_blocks, block_size, num_kv_heads, head_dim]`.

    Args:
        num_layers: Layers of the stage.
        num_blocks: Blocks in the pool.
        block_size: Tokens a block.
        num_kv_heads: Key and value heads a layer.
        head_dim: Elements a head.
        dtype: Element type.
        device: Where the pool lives.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        num_blocks: int,
        block_size: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        shape = (num_layers, 2, num_blocks, block_size, num_kv_heads, head_dim)
        self._pool = torch.zeros(shape, dtype=dtype, device=device)
        # Views cost a step more than they look, so they are made once.
        self._layers = [LayerKv(*map(KvViews.of, layer)) for layer in self._pool]

    @classmethod
    def within(
        cls,
        num_bytes: int,
        *,
        num_layers: int,
        block_size: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
        max_num_blocks: int,
    ) -> Self:
        """Makes the largest pool that fits `num_bytes`, up to `max_num_blocks`.

        Raises:
            InsufficientMemoryError: Not even one block fits.
        """
        block_bytes = num_layers * 2 * block_size * num_kv_heads * head_dim * dtype.itemsize
        num_blocks = min(num_bytes // block_bytes, max_num_blocks)
        if num_blocks < 1:
            raise InsufficientMemoryError(
                f"{num_bytes} bytes of KV memory do not hold one block of {block_size} tokens"
                f" ({block_bytes} bytes)",
                kv_bytes=num_bytes,
                block_bytes=block_bytes,
            )
        return cls(
            num_layers=num_layers,
            num_blocks=num_blocks,
            block_size=block_size,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            dtype=dtype,
            device=device,
        )

    @property
    def num_bytes(self) -> int:
        """Bytes of the keys and values of all blocks and layers."""
        return self._pool.nbytes

    @property
    def bytes_per_token_and_layer(self) -> int:
        """Keys and values of one token in one layer."""
        return 2 * self._pool[0, 0, 0, 0].nbytes

    @property
    def max_gathered_tokens(self) -> int:
        """Tokens whose keys and values of one layer may be gathered at once."""
        return MAX_GATHERED_BYTES // self.bytes_per_token_and_layer

    @property
    def device(self) -> torch.device:
        """Where the pool lives."""
        return self._pool.device

    def prepare(self, indices: StepIndices) -> None:
        """Copies shared blocks that will be written, and clears new ones.

        A new block is cleared because attention that gathers reads whole blocks and masks what
        lies beyond the sequence: a NaN that a former owner left there would pass any mask.
        """
        if len(indices.copy_sources):
            self._pool[:, :, indices.copy_targets] = self._pool[:, :, indices.copy_sources]
        if len(indices.new_blocks):
            self._pool.index_fill_(2, indices.new_blocks, 0)

    def layer(self, layer_index: int) -> LayerKv:
        """Keys and values of a local layer."""
        return self._layers[layer_index]
