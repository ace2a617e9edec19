"""The highest logits of rows: by falling logit, equal ones by rising id.

The head of a row that is sorted whole, stably. torch's topk keeps any of the logits that equal the
lowest one it keeps. On a card most rows have such ties, as logits are rounded to 16 bits.
"""

import torch


def highest(logits: torch.Tensor, k: int, *, may_wait: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Finds the highest logits of every row.

    Args:
        logits: float32 `[num_rows, vocab_size]`.
        k: How many, at most vocab_size.
        may_wait: True: the host looks for ties and corrects them, which is the quickest on a CPU;
            a card would be waited for. False: the device does so for all rows, whatever they hold.

    Returns:
        Ids, int64, and logits, float32, `[num_rows, k]` each, on the device.
    """
    if k == 0:
        empty = logits.new_empty(len(logits), 0)
        return empty.long(), empty
    if k == 1:  # what greedy decoding asks for; argmax finds the first of equals
        ids = logits.argmax(dim=1, keepdim=True)
        return ids, logits.gather(1, ids)
    values, ids = logits.topk(k, dim=1)
    correct = _correct_tied_rows if may_wait else _correct_all_rows
    ids = correct(logits, values, ids).sort(dim=1).values
    values, order = logits.gather(1, ids).sort(dim=1, descending=True, stable=True)
    return ids.gather(1, order), values


def _correct_tied_rows(
    logits: torch.Tensor, values: torch.Tensor, ids: torch.Tensor
) -> torch.Tensor:
    """Puts the lowest ids in the place of those that topk found, where it left some out."""
    lowest = values[:, -1:]
    are_lowest = values == lowest
    num_left_out = (logits == lowest).sum(dim=1) - are_lowest.sum(dim=1)
    for i in num_left_out.nonzero().flatten().tolist():
        num_kept = int(are_lowest[i].sum())
        ids[i, are_lowest[i]] = (logits[i] == lowest[i]).nonzero().flatten()[:num_kept]
    return ids


def _correct_all_rows(
    logits: torch.Tensor, values: torch.Tensor, ids: torch.Tensor
) -> torch.Tensor:
    """Does the same without a look at any value; `values` fall."""
    vocab_size, k = logits.shape[1], values.shape[1]
    lowest = values[:, -1:]
    countdown = torch.arange(vocab_size, 0, -1, dtype=torch.int32, device=logits.device)
    first_ids = ((logits == lowest) * countdown).topk(k, dim=1).indices
    are_lowest = values == lowest  # the last ones of every row
    places = are_lowest.cumsum(dim=1).sub_(1).clamp_(min=0)
    return torch.where(are_lowest, first_ids.gather(1, places), ids)
