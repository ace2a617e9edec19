"""Decode attention by the kernel that reads every key and value where it lies, once."""

import torch

from stage_server.kernels.kernels import Kernels
from stage_server.kv_cache.kv_pool import LayerKv
from stage_server.kv_cache.scoring import Scoring
from stage_server.kv_cache.step_indices import DecodeIndices


class KernelDecodes:
    """Sequences that run one token each, of any lengths.

    Args:
        kernels: The kernels of the device.
        indices: Indices of the step's sequences that decode.
        block_size: Tokens a block.
    """

    def __init__(self, kernels: Kernels, indices: DecodeIndices, block_size: int) -> None:
        self._kernels = kernels
        self._indices = indices
        self._block_size = block_size

    def attend_into(
        self, output: torch.Tensor, query: torch.Tensor, layer: LayerKv, scoring: Scoring
    ) -> None:
        """Attends these sequences' rows of `query` and writes those rows of `output`.

        Both are contiguous.
        """
        self._kernels.decode(
            query,
            layer.keys.rows,
            layer.values.rows,
            rows=self._indices.rows,
            tables=self._indices.tables,
            starts=self._indices.starts,
            lengths=self._indices.lengths,
            max_length=self._indices.max_length,
            block_size=self._block_size,
            scaling=scoring.scaling,
            sliding_window=scoring.sliding_window,
            softcap=scoring.softcap,
            sinks=scoring.sinks,
            output=output,
            key_scales=layer.keys.scales,
            value_scales=layer.values.scales,
        )
