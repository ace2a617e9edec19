"""What the kernels of attention compute, slow and obvious."""

from typing import Any

import torch

from stage_server.kernels.kernels import Kernels
from stage_server.kv_cache.coded_heads import coded, decoded


def obvious_store_coded(
    heads: torch.Tensor, slots: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor
) -> None:
    """As `kernels.store_coded`, one row after the other."""
    for row, slot in enumerate(slots.tolist()):
        codes[slot], scales[slot] = coded(heads[row])


class ObviousKernels(Kernels):
    """Attention in operations of torch, one token of one sequence after the other."""

    def decode(  # type: ignore[override]
        self,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        *,
        rows: torch.Tensor,
        tables: torch.Tensor,
        starts: torch.Tensor,
        lengths: torch.Tensor,
        max_length: int,
        block_size: int,
        scaling: float,
        sliding_window: int | None,
        softcap: float | None,
        output: torch.Tensor,
        sinks: torch.Tensor | None,
        key_scales: torch.Tensor | None,
        value_scales: torch.Tensor | None,
    ) -> None:
        query, keys, values = query.float(), keys.float(), values.float()
        if key_scales is not None and value_scales is not None:
            keys = decoded(keys, key_scales, torch.float32)
            values = decoded(values, value_scales, torch.float32)
        group = query.shape[1] // keys.shape[1]
        numbers = (part.tolist() for part in (rows, starts, lengths))
        for row, start, length in zip(*numbers, strict=True):
            assert length <= max_length
            if length == 0:
                output[row] = 0
                continue
            first = 0 if sliding_window is None else max(0, length - sliding_window)
            positions = torch.arange(first, length)
            blocks = tables[start + positions // block_size]
            slots = blocks * block_size + positions % block_size
            # [num_heads, num_positions, head_dim]
            key, value = (
                part[slots].repeat_interleave(group, 1).transpose(0, 1) for part in (keys, values)
            )
            scores = (key @ query[row, :, :, None]).squeeze(2) * scaling
            if softcap is not None:
                scores = softcap * torch.tanh(scores / softcap)
            if sinks is not None:
                scores = torch.cat((scores, sinks.float()[:, None]), dim=1)
            weights = scores.softmax(1)[:, : len(positions)]
            output[row] = (weights[:, None] @ value).squeeze(1)

    def prefill(
        self,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        *,
        table: torch.Tensor,
        first_row: int,
        num_tokens: int,
        start_position: int,
        **rest: Any,
    ) -> None:
        """A chunk is as many decodes, each of which sees one position more."""
        own = torch.arange(num_tokens)
        self.decode(
            query,
            keys,
            values,
            rows=first_row + own,
            tables=table,
            starts=torch.zeros_like(own),
            lengths=start_position + own + 1,
            max_length=start_position + num_tokens,
            **rest,
        )
