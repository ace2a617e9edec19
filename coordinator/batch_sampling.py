"""Sampling for a whole micro-batch: which rows are wanted, and the tokens chosen from them."""

from collections.abc import Iterator, Mapping

from coordinator.core.step import LogitsRequest, SchedulerOutput, StepOutput
from coordinator.live_request import LiveRequest
from protos.errors import InternalError


def logits_requests(
    output: SchedulerOutput, requests: Mapping[str, LiveRequest]
) -> list[LogitsRequest]:
    """What the samplers need: the last row of every slice that samples."""
    return [
        requests[request_id].sampler.logits_request(row)
        for request_id, row in _sampled_rows(output)
    ]


def sample(
    output: SchedulerOutput, step: StepOutput, requests: Mapping[str, LiveRequest]
) -> tuple[dict[str, int], dict[str, InternalError]]:
    """Chooses the next token of every slice that samples and has not ended meanwhile.

    Returns:
        Tokens by request id, and errors of those whose logits are unusable.
    """
    rows = {row.row: row for row in step.logits}
    tokens: dict[str, int] = {}
    errors: dict[str, InternalError] = {}
    for request_id, row in _sampled_rows(output):
        live = requests.get(request_id)
        if live is None:
            continue
        try:
            tokens[request_id] = live.sampler.sample(rows[row])
        except InternalError as error:
            errors[request_id] = error
    return tokens, errors


def _sampled_rows(output: SchedulerOutput) -> Iterator[tuple[str, int]]:
    row = -1
    for piece in output.slices:
        row += len(piece.token_ids)
        if piece.samples:
            yield piece.request_id, row
