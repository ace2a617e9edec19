"""Adds up the final hidden states of rows, of which embeddings of prompts are made.

A prompt has thousands of rows, and a hidden state as many numbers as a row of a matrix; so the sum
alone leaves the stage.
"""

from collections.abc import Callable, Sequence

import torch

from stage_server.compute.host_copies import HostCopy
from stage_server.core.batch import HiddenSum
from stagecoach.contract.hidden_sums import HiddenSumRequest


class HiddenSums:
    """Sums of rows that a device makes, one a request.

    The norm goes once over all rows from the first to the last that is wanted: it is the same in
    each row, and quick beside the layers.

    Args:
        norm: The model's last norm, of `[num_rows, hidden_size]`.
        hidden: `[num_tokens, hidden_size]`, the micro-batch behind the last layer.
        requests: What is wanted, at least one, by rising rows.
    """

    def __init__(
        self,
        norm: Callable[[torch.Tensor], torch.Tensor],
        hidden: torch.Tensor,
        requests: Sequence[HiddenSumRequest],
    ) -> None:
        self._requests = requests
        start = requests[0].first_row
        final = norm(hidden[start : requests[-1].end_row])
        sums = [
            final[one.first_row - start : one.end_row - start].sum(dim=0, dtype=torch.float32)
            for one in requests
        ]
        self._sums = HostCopy(torch.stack(sums))

    def due_in_s(self) -> float:
        """Says in how many seconds to ask again; 0 once `sums` hardly waits. Never raises."""
        return self._sums.due_in_s()

    def sums(self) -> tuple[HiddenSum, ...]:
        """Waits for the device, and returns the sum of each request, in order.

        Raises:
            torch.AcceleratorError: The device reports an error, of whatever it did before.
        """
        return tuple(
            HiddenSum(first_row=request.first_row, sum=row)
            for request, row in zip(self._requests, self._sums.wait(), strict=True)
        )
