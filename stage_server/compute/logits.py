"""Reduces rows of logits to what the coordinator's sampler asked for.

What is found of all rows comes back in one copy, which the device makes after whatever it has to do
before. Whole rows that a request asks for come with it. That other rows are needed whole shows when
the copy is read, because their candidates hold too little; so the logits are kept until then. These
rows come past what the device was given in the meantime.
"""

import math
import struct
from collections.abc import Sequence
from typing import NamedTuple, Self

import torch

from stage_server.compute.candidates import highest
from stage_server.compute.host_copies import HostCopies, copies_past, copy_to_host
from stage_server.compute.noise import contenders_of, signed
from stage_server.core.batch import LogitsRow
from stagecoach.contract.logits_request import LogitsRequest


class WantedLogits(NamedTuple):
    """Requests of a micro-batch, and what they want beside candidates, by their places."""

    requests: Sequence[LogitsRequest]
    unit_rows: list[int]
    """Rows that want the sum at temperature 1."""
    contender_rows: list[int]
    """Rows that want contenders."""
    token_rows: list[int]
    """Row of each named token."""
    token_ids: list[int]

    @classmethod
    def by(cls, requests: Sequence[LogitsRequest]) -> Self:
        """Looks through requests."""
        named = [(i, token_id) for i, r in enumerate(requests) for token_id in r.token_ids]
        return cls(
            requests,
            [i for i, request in enumerate(requests) if request.wants_unit_log_sum_exp],
            [i for i, request in enumerate(requests) if request.num_contenders],
            [i for i, _ in named],
            [token_id for _, token_id in named],
        )

    def numbers(self) -> list[int]:
        """Returns what the device has to know of them, in integers of 64 bits."""
        return [
            *(_float64_bits(request.temperature) for request in self.requests),
            *self.unit_rows,
            *self.contender_rows,
            *(signed(self.requests[i].noise_key) for i in self.contender_rows),
            *self.token_rows,
            *self.token_ids,
        ]


class _Found(NamedTuple):
    """What was found of all rows; on the device, and then on the host."""

    log_sum_exps: torch.Tensor
    """float32 `[num_rows]`."""
    unit_log_sum_exps: torch.Tensor
    """float32, of `unit_rows`."""
    contender_ids: torch.Tensor
    """int64 `[num_contender_rows, most]`, of `contender_rows`."""
    contender_logits: torch.Tensor
    """float32, likewise."""
    token_logits: torch.Tensor
    """float32, of each named token."""
    top_ids: torch.Tensor
    """int64 `[num_rows, num_candidates]`."""
    top_logits: torch.Tensor
    """float32, likewise; falling."""


class LogitsReduction:
    """Rows of logits that are being reduced, each as its request says.

    Args:
        logits: float32 `[num_requests, vocab_size]`, one row a request, on any device; kept.
        wanted: What is wanted of each row, at least one.
        numbers: int64, those of `wanted`, on that device.
    """

    def __init__(self, logits: torch.Tensor, wanted: WantedLogits, numbers: torch.Tensor) -> None:
        self._logits = logits
        self._wanted = wanted
        found = _find(logits, wanted, numbers)
        # One by one, as the device may have no memory for all of them. They end before `found`.
        self._whole_rows = {
            i: copy_to_host(logits[i])
            for i, request in enumerate(wanted.requests)
            if request.num_candidates >= logits.shape[1]
        }
        self._found = HostCopies(found)

    def due_in_s(self) -> float:
        """Says in how many seconds to ask again; 0 once `rows` hardly waits. Never raises."""
        return self._found.due_in_s()

    def rows(self) -> tuple[LogitsRow, ...]:
        """Waits for the device, and returns one row a request, in order.

        Candidates lie by falling logit, equal logits by rising id, exactly as a stable sort of the
        full row would place them.
        """
        logits, wanted = self._logits, self._wanted
        found = _Found(*self._found.wait())
        log_sum_exps = found.log_sum_exps.tolist()
        top_ids, top_logits = found.top_ids.tolist(), found.top_logits.tolist()
        units = dict(zip(wanted.unit_rows, found.unit_log_sum_exps.tolist(), strict=True))
        contenders = {
            row: (ids, values)
            for row, ids, values in zip(
                wanted.contender_rows,
                found.contender_ids.tolist(),
                found.contender_logits.tolist(),
                strict=True,
            )
        }
        token_logits = iter(found.token_logits.tolist())
        rows: list[LogitsRow] = []
        incomplete: list[int] = []
        for i, request in enumerate(wanted.requests):
            named = [next(token_logits) for _ in request.token_ids]
            ids, values = contenders.get(i, ([], []))
            row = LogitsRow(
                row=request.row,
                log_sum_exp=log_sum_exps[i],
                candidate_ids=top_ids[i][: request.num_candidates],
                candidate_logits=top_logits[i][: request.num_candidates],
                token_logits=named,
                unit_log_sum_exp=units.get(i),
                contender_ids=ids[: request.num_contenders],
                contender_logits=values[: request.num_contenders],
            )
            if i not in self._whole_rows and not covers(
                request, row.log_sum_exp, list(row.candidate_logits)
            ):
                incomplete.append(i)
            rows.append(row)
        fetched = zip(incomplete, copies_past([logits[i] for i in incomplete]), strict=True)
        for i, full in (self._whole_rows | dict(fetched)).items():
            rows[i] = LogitsRow(
                row=rows[i].row,
                log_sum_exp=rows[i].log_sum_exp,
                candidate_ids=[],
                candidate_logits=[],
                token_logits=[],
                full=full,
                unit_log_sum_exp=rows[i].unit_log_sum_exp,
            )
        return tuple(rows)


def _find(logits: torch.Tensor, wanted: WantedLogits, numbers: torch.Tensor) -> _Found:
    """Finds everything, without waiting for the device."""
    requests = wanted.requests
    temperatures, unit_rows, contender_rows, noise_keys, token_rows, token_ids = (
        numbers.split_with_sizes(
            [
                len(requests),
                len(wanted.unit_rows),
                *(2 * [len(wanted.contender_rows)]),
                *(2 * [len(wanted.token_ids)]),
            ]
        )
    )
    gaps = logits - logits.amax(dim=1, keepdim=True)  # NaN where the highest is not finite
    weights = (gaps / temperatures.view(torch.float64).to(torch.float32)[:, None]).exp_()
    units = contender_logits = token_logits = logits.new_empty(0)
    contender_ids = numbers.new_empty(0)
    if wanted.unit_rows:
        units = gaps[unit_rows].exp_().sum(dim=1).log_()
    if wanted.contender_rows:
        most = max(request.num_contenders for request in requests)
        contender_ids, contender_logits = contenders_of(
            logits, weights, contender_rows, noise_keys, most
        )
    if wanted.token_ids:
        token_logits = logits[token_rows, token_ids]
    reduced = [r.num_candidates for r in requests if r.num_candidates < logits.shape[1]]
    return _Found(
        weights.sum(dim=1).log_(),
        units,
        contender_ids,
        contender_logits,
        token_logits,
        *highest(logits, max(reduced, default=0), may_wait=logits.device.type == "cpu"),
    )


def _float64_bits(value: float) -> int:
    bits: int = struct.unpack("<q", struct.pack("<d", value))[0]
    return bits


def covers(request: LogitsRequest, log_sum_exp: float, candidates: list[float]) -> bool:
    """True when the candidates are enough for the request; either condition that holds is.

    Args:
        request: What is wanted.
        log_sum_exp: Log-sum-exp of the whole row, as `LogitsRow` has it.
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
