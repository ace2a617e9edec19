"""Rows in few bits on a device, with scales and offsets in float16."""

from collections.abc import Callable, Iterable

import torch
from torch import nn

from stage_server.model.coded_rows import CodedRows


class StoredGroups(nn.Module):
    """Codes, scales and offsets of rows. Offsets are left out where all are 0.

    Args:
        parts: The rows, one part after another, at least one.
        num_rows: How many rows there are.
        device: Where they are to live.
        pack: Makes what is kept of codes, uint8 `[num_rows, num_columns]`, row by row.
    """

    offsets: torch.Tensor | None

    def __init__(
        self,
        parts: Iterable[CodedRows],
        num_rows: int,
        device: torch.device,
        pack: Callable[[torch.Tensor], torch.Tensor] = lambda codes: codes,
    ) -> None:
        super().__init__()

        def alike(rows: torch.Tensor, dtype: torch.dtype) -> nn.Buffer:
            return nn.Buffer(torch.empty(num_rows, rows.shape[1], dtype=dtype, device=device))

        self.register_buffer("offsets", None)
        end = 0
        for part in parts:
            start, end = end, end + len(part.codes)
            packed = pack(part.codes)
            if start == 0:
                self.codes = alike(packed, torch.uint8)
                self.scales = alike(part.scales, torch.float16)
            self.codes[start:end] = packed
            self.scales[start:end] = part.scales
            if self.offsets is None and part.offsets.any():
                self.offsets = torch.zeros_like(self.scales)
            if self.offsets is not None:
                self.offsets[start:end] = part.offsets
        assert end == num_rows, "the parts are all rows"

    def __len__(self) -> int:
        return len(self.codes)
