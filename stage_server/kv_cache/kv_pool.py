"""The KV tensors of a stage: one preallocated pool, cut into blocks."""

from collections.abc import Callable, Iterator
from typing import NamedTuple, Self

import torch

from stage_server.core.torch_dtypes import torch_dtype
from stage_server.kv_cache.coded_heads import coded
from stage_server.kv_cache.step_indices import StepIndices
from stagecoach.contract.errors import InsufficientMemoryError
from stagecoach.contract.precision import KvFormat

MAX_GATHERED_BYTES = 128 * 2**20
"""KV of one layer that attention gathers at once for sequences that decode, where there are no
kernels; a longer sequence is gathered alone. Reading so much takes far longer than launching the
kernels that do it."""


class NewKv(NamedTuple):
    """Keys and values of a micro-batch's rows, `[num_tokens, num_kv_heads, head_dim]` each."""

    keys: torch.Tensor
    values: torch.Tensor


class KvViews(NamedTuple):
    """Keys or values of one layer, the same memory in three shapes."""

    blocks: torch.Tensor
    """`[num_blocks, block_size, num_kv_heads, head_dim]`."""
    rows: torch.Tensor
    """`[num_blocks * block_size, num_kv_heads, head_dim]`."""
    heads: torch.Tensor
    """`[1, num_kv_heads, num_blocks * block_size, head_dim]`."""
    scales: torch.Tensor | None
    """float16 `[num_blocks * block_size, num_kv_heads, 2]`: scale and offset of codes; None: plain
    numbers."""

    @classmethod
    def of(cls, blocks: torch.Tensor, scales: torch.Tensor | None) -> Self:
        """Makes the others of `blocks`, which is contiguous.

        Args:
            blocks: As `KvViews.blocks`.
            scales: float16 `[num_blocks, block_size, num_kv_heads, 2]`, contiguous, or None.
        """
        rows = blocks.view(-1, *blocks.shape[2:])
        flat = None if scales is None else scales.view(-1, *scales.shape[2:])
        return cls(blocks, rows, rows.transpose(0, 1).unsqueeze(0), flat)


class LayerKv(NamedTuple):
    """Keys and values of one layer, which may be the same."""

    keys: KvViews
    values: KvViews

    @property
    def is_coded(self) -> bool:
        """Whether numbers are codes."""
        return self.keys.scales is not None

    def holds(self, dtype: torch.dtype) -> bool:
        """Whether numbers are plain ones of this dtype, which attention reads as they are."""
        return self.keys.rows.dtype == dtype

    def store(self, slots: torch.Tensor, new: NewKv) -> NewKv | None:
        """Writes a micro-batch's keys and values, rounded to the format of the pool.

        Args:
            slots: int64 `[num_tokens]`: where each row goes.
            new: The rows.

        Returns:
            The rows as they were rounded; None: they are codes.
        """
        if self.keys.scales is None or self.values.scales is None:
            dtype = self.keys.rows.dtype
            rounded = NewKv(new.keys.to(dtype), new.values.to(dtype))
            for heads, cache in self.places(rounded):
                cache.rows.index_copy_(0, slots, heads)
            return rounded
        for heads, cache in self.places(new):
            assert cache.scales is not None, "both are coded"
            numbers = coded(heads)
            cache.rows.index_copy_(0, slots, numbers.codes)
            cache.scales.index_copy_(0, slots, numbers.scales)
        return None

    def places(self, new: NewKv) -> Iterator[tuple[torch.Tensor, KvViews]]:
        """Yields new rows and where they are kept: once where the keys are the values."""
        yield new.keys, self.keys
        if self.values is not self.keys:
            yield new.values, self.values

    def read(self, read: Callable[[KvViews], torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Reads keys and values, once where they are the same."""
        keys = read(self.keys)
        return keys, keys if self.values is self.keys else read(self.values)


class KvPool:
    """Keys and values of all layers of a stage, in blocks of tokens.

    One tensor, `[num_layers, 2, num_blocks, block_size, num_kv_heads, head_dim]`, and in 8 bits a
    second one of scales and offsets, which are the last dimension. Where keys are the values too,
    the second dimension is 1.

    Args:
        num_layers: Layers of the stage.
        num_blocks: Blocks in the pool.
        block_size: Tokens a block.
        num_kv_heads: Key and value heads a layer.
        head_dim: Elements a head.
        kv_format: How numbers are kept.
        device: Where the pool lives.
        values_are_keys: Whether what is kept of a token is both.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        num_blocks: int,
        block_size: int,
        num_kv_heads: int,
        head_dim: int,
        kv_format: KvFormat,
        device: torch.device,
        values_are_keys: bool = False,
    ) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._num_parts = 1 if values_are_keys else 2
        shape = (num_layers, self._num_parts, num_blocks, block_size, num_kv_heads, head_dim)
        plain = kv_format.dtype
        dtype = torch.int8 if plain is None else torch_dtype(plain)
        self._pool = torch.zeros(shape, dtype=dtype, device=device)
        self._scales = None
        if plain is None:
            self._scales = torch.zeros(*shape[:-1], 2, dtype=torch.float16, device=device)
        # Views cost a step more than they look, so they are made once.
        self._layers = [self._layer(index) for index in range(num_layers)]

    def _layer(self, index: int) -> LayerKv:
        views = list(self._views(index))
        return LayerKv(views[0], views[-1])

    def _views(self, layer: int) -> Iterator[KvViews]:
        for which in range(self._num_parts):
            scales = None if self._scales is None else self._scales[layer, which]
            yield KvViews.of(self._pool[layer, which], scales)

    @classmethod
    def within(
        cls,
        num_bytes: int,
        *,
        num_layers: int,
        block_size: int,
        num_kv_heads: int,
        head_dim: int,
        kv_format: KvFormat,
        device: torch.device,
        max_num_blocks: int,
        values_are_keys: bool = False,
    ) -> Self:
        """Makes the largest pool that fits `num_bytes`, up to `max_num_blocks`.

        Raises:
            InsufficientMemoryError: Not even one block fits.
        """
        num_rows = num_kv_heads if values_are_keys else 2 * num_kv_heads
        block_bytes = num_layers * block_size * num_rows * kv_format.head_bytes(head_dim)
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
            kv_format=kv_format,
            device=device,
            values_are_keys=values_are_keys,
        )

    @property
    def num_bytes(self) -> int:
        """Bytes of the keys and values of all blocks and layers."""
        return sum(tensor.nbytes for tensor in self._tensors)

    @property
    def bytes_per_token_and_layer(self) -> int:
        """Keys and values of one token in one layer."""
        return self._num_parts * sum(tensor[0, 0, 0, 0].nbytes for tensor in self._tensors)

    @property
    def _tensors(self) -> list[torch.Tensor]:
        """All that a block has memory in."""
        return [self._pool] if self._scales is None else [self._pool, self._scales]

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
        for tensor in self._tensors:
            if len(indices.copy_sources):
                tensor[:, :, indices.copy_targets] = tensor[:, :, indices.copy_sources]
            if len(indices.new_blocks):
                tensor.index_fill_(2, indices.new_blocks, 0)

    def layer(self, layer_index: int) -> LayerKv:
        """Keys and values of a local layer."""
        return self._layers[layer_index]
