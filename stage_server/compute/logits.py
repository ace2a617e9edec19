"""Reduces rows of logits to what the coordinator's sampler asked for."""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from stage_server.compute.noise import Contenders, find_contenders
from stage_server.core.batch import LogitsRequest, LogitsRow

_NO_CONTENDERS = Contenders([], [])


def reduce_logits(logits: torch.Tensor, requests: Sequence[LogitsRequest]) -> tuple[LogitsRow, ...]:
    """Reduces each row as its request says.

    Args:
        logits: float32 `[num_requests, vocab_size]`, one row a request, on any device.
        requests: What is wanted of each row.

    Returns:
        One row a request, in order. Candidates lie by falling logit, equal logits by rising id,
        exactly as a stable sort of the full row would place them.
    """
    vocab_size = logits.shape[1]
    temperatures = torch.tensor([request.temperature for request in requests], device=logits.device)
    gaps = logits - logits.amax(dim=1, keepdim=True)  # NaN where the highest is not finite
    weights = (gaps / temperatures[:, None]).exp_()
    log_sum_exps = weights.sum(dim=1).log_().tolist()
    unit_log_sum_exps: list[float | None] = [None] * len(requests)
    if wanted := [i for i, r in enumerate(requests) if r.wants_unit_log_sum_exp]:
        values = gaps[wanted].exp_().sum(dim=1).log_().tolist()
        for i, value in zip(wanted, values, strict=True):
            unit_log_sum_exps[i] = value
    contenders = _contenders(logits, weights, requests)
    num_candidates = max(
        (r.num_candidates for r in requests if r.num_candidates < vocab_size), default=0
    )
    top_logits, top_ids = _top(logits, num_candidates)
    return tuple(
        replace(
            _reduce_row(
                request,
                logits[i],
                log_sum_exps[i],
                top_logits[i],
                top_ids[i],
                contenders.get(i, _NO_CONTENDERS),
            ),
            unit_log_sum_exp=unit_log_sum_exps[i],
        )
        for i, request in enumerate(requests)
    )


def _contenders(
    logits: torch.Tensor, weights: torch.Tensor, requests: Sequence[LogitsRequest]
) -> dict[int, Contenders]:
    """By row, of those that want any."""
    wanted = [i for i, request in enumerate(requests) if request.num_contenders]
    if not wanted:
        return {}
    found = find_contenders(
        logits,
        weights,
        wanted,
        [requests[i].noise_key for i in wanted],
        max(requests[i].num_contenders for i in wanted),
    )
    return {
        i: Contenders(
            one.ids[: requests[i].num_contenders], one.logits[: requests[i].num_contenders]
        )
        for i, one in zip(wanted, found, strict=True)
    }


def _reduce_row(
    request: LogitsRequest,
    row: torch.Tensor,
    log_sum_exp: float,
    top_logits: list[float],
    top_ids: list[int],
    contenders: Contenders,
) -> LogitsRow:
    candidates = top_logits[: request.num_candidates]
    if request.num_candidates >= row.shape[0] or not covers(request, log_sum_exp, candidates):
        return LogitsRow(
            row=request.row,
            log_sum_exp=log_sum_exp,
            candidate_ids=[],
            candidate_logits=[],
            token_logits=[],
            full=row.to("cpu"),
        )
    token_ids = torch.tensor(request.token_ids, dtype=torch.int64, device=row.device)
    return LogitsRow(
        row=request.row,
        log_sum_exp=log_sum_exp,
        candidate_ids=top_ids[: request.num_candidates],
        candidate_logits=candidates,
        token_logits=row[token_ids].tolist() if request.token_ids else [],
        contender_ids=contenders.ids,
        contender_logits=contenders.logits,
    )


def covers(request: LogitsRequest, log_sum_exp: float, candidates: list[float]) -> bool:
    """True when the candidates are enough for the request; either condition that holds is.

    Args:
        request: What is wanted.
        log_sum_exp: Of the whole row, as `LogitsRow` has it.
        candidates: The highest logits, falling.
    """
    if request.min_mass is None and request.min_gap is None:
        return True
    if request.min_gap is not None and candidates[0] - candidates[-1] >= request.min_gap:
        return True
    if request.min_mass is None:
        return False
    gaps = torch.tensor(candidates, dtype=torch.float64) - candidates[0]
    log_mass = torch.logsumexp(gaps / request.temperature, dim=0).item() - log_sum_exp
    return log_mass >= math.log(request.min_mass)


def _top(logits: torch.Tensor, k: int) -> tuple[list[list[float]], list[list[int]]]:
    """Highest `k` logits of every row and their ids, placed as a stable sort would place them."""
    if k == 0:
        return [[] for _ in logits], [[] for _ in logits]
    if k == 1:  # what greedy decoding asks for; argmax finds the first of equals
        ids = logits.argmax(dim=1, keepdim=True)
        return logits.gather(1, ids).tolist(), ids.tolist()
    ids = logits.topk(k, dim=1).indices.sort(dim=1).values
    values = logits.gather(1, ids)
    values, order = values.sort(dim=1, descending=True, stable=True)
    ids = ids.gather(1, order)
    # topk keeps any of the logits that equal the lowest; the ones with the lowest ids are wanted.
    lowest = values[:, -1:]
    tied = (logits == lowest).sum(dim=1) > (values == lowest).sum(dim=1)
    for i in tied.nonzero().flatten().tolist():
        num_tied = int((values[i] == lowest[i]).sum())
        ids[i, k - num_tied :] = (logits[i] == lowest[i]).nonzero().flatten()[:num_tied]
    return values.tolist(), ids.tolist()
