"""Sampling for a whole micro-batch: which rows are wanted, and the tokens chosen from them."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from coordinator.core.events import TokenLogprobs
from coordinator.core.prompt_logprobs import PromptLogprobs
from coordinator.core.step import LogitsRow, ScheduledSlice, SchedulerOutput, StepOutput
from coordinator.core.turn import Turn
from coordinator.engine.live_request import LiveRequest
from coordinator.sampling.prompt_logprobs import prompt_logprobs
from coordinator.sampling.prompt_pooling import check_finite
from stagecoach.contract.errors import InternalError, StagecoachError
from stagecoach.contract.logits_request import LogitsRequest

_log = logging.getLogger(__name__)


class Sampled(NamedTuple):
    """What was sampled from one micro-batch, by request id."""

    token_ids: dict[str, tuple[int, ...]]
    """At least one: drafts that proved right, and the token after them."""
    logprobs: dict[str, tuple[TokenLogprobs, ...]]
    """Log-probabilities of these, of the requests that want any."""
    prompt_logprobs: dict[str, PromptLogprobs]
    """Log-probabilities of prompts, of the requests that want any."""
    hidden_sums: dict[str, Sequence[float]]
    """Sums of hidden states, of the requests that want an embedding."""
    errors: dict[str, StagecoachError]
    """What went wrong with the requests that cannot go on."""

    def num_failed_drafts(self, output: SchedulerOutput) -> int:
        """Rows of the micro-batch that were guessed in vain."""
        return sum(
            piece.num_sampled_rows - len(self.token_ids.get(piece.request_id, (0,)))
            for piece in output.slices
            if piece.num_drafts
        )


def logits_requests(
    output: SchedulerOutput, requests: Mapping[str, LiveRequest]
) -> list[LogitsRequest]:
    """What the samplers need: the last rows of every slice that samples."""
    return [
        request
        for piece, row in _sampled(output)
        for request in requests[piece.request_id].sampler.logits_requests(
            row, piece.draft_token_ids
        )
    ]


async def sample(
    output: SchedulerOutput, step: StepOutput, requests: Mapping[str, LiveRequest]
) -> Sampled:
    """Chooses the next tokens of every slice that samples and has not ended meanwhile.

    Makes log-probabilities of the prompts that want them, too, and takes the sums of hidden states
    of those that are embedded.

    Whatever goes wrong with one request, a bug included, ends that request alone. Lets others have
    the loop now and then: many rows whose mass is cut take a millisecond and more each.
    """
    turn = Turn()
    rows = {row.row: row for row in step.logits}
    sampled = Sampled({}, {}, {}, {}, {})
    answers, sums = iter(step.prompt_logits), iter(step.hidden_sums)
    for piece in output.slices:
        if piece.pooled_rows is not None:
            hidden_sum = next(sums)
            try:
                check_finite(hidden_sum)
            except StagecoachError as error:
                sampled.errors[piece.request_id] = error
            else:
                sampled.hidden_sums[piece.request_id] = hidden_sum
        if piece.prompt_rows is not None:
            await turn.give_way()
            start = piece.start_position + piece.prompt_rows.first_row + 1
            try:
                logprobs_of_prompt = prompt_logprobs(next(answers), start)
            except StagecoachError as error:
                sampled.errors[piece.request_id] = error
                continue
            sampled.prompt_logprobs[piece.request_id] = logprobs_of_prompt
    for piece, row in _sampled(output):
        await turn.give_way()
        request_id = piece.request_id
        live = requests.get(request_id)
        if live is None or request_id in sampled.errors:
            continue
        own_rows = [rows[row + index] for index in range(piece.num_sampled_rows)]
        try:
            token_ids, logprobs = _drawn(live, own_rows, piece.draft_token_ids)
        except StagecoachError as error:
            sampled.errors[request_id] = error
            continue
        except Exception:  # in the engine's loop it would end every request
            _log.exception("sampling failed", extra={"request_id": request_id})
            sampled.errors[request_id] = InternalError(
                f"request {request_id} failed in sampling; see the coordinator's log"
            )
            continue
        sampled.token_ids[request_id] = token_ids
        if logprobs:
            sampled.logprobs[request_id] = logprobs
    return sampled


def _drawn(
    live: LiveRequest, rows: Sequence[LogitsRow], draft_token_ids: Sequence[int]
) -> tuple[tuple[int, ...], tuple[TokenLogprobs, ...]]:
    """Draws row after row until a token is not the draft that runs in the next row, or the last.

    So the tokens are those of steps without drafts. The sampler counts all but the last.

    Raises:
        StagecoachError: See `TokenSampler.sample`.
    """
    sampler = live.sampler
    token_ids: list[int] = []
    logprobs: list[TokenLogprobs] = []
    for index, row in enumerate(rows):
        if index:
            sampler.append(token_ids[-1])
        token_ids.append(sampler.sample(row))
        one = sampler.logprobs(row, token_ids[-1])
        if one is not None:
            logprobs.append(one)
        if tuple(draft_token_ids[index : index + 1]) != (token_ids[-1],):
            break
        if token_ids[-1] in live.request.stop_token_ids:
            break
    return tuple(token_ids), tuple(logprobs)


def _sampled(output: SchedulerOutput) -> Iterator[tuple[ScheduledSlice, int]]:
    """Yields each slice that samples, and the first of its rows that it samples from."""
    row = 0
    for piece in output.slices:
        row += len(piece.token_ids)
        if piece.num_sampled_rows:
            yield piece, row - piece.num_sampled_rows
