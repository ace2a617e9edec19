"""A micro-batch between the sampler and the clients: its tokens, their text, its times.

Tokens and ends are decided before the next micro-batch is scheduled; text and events are made while
it runs.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from coordinator.core.events import TokenLogprobs
from coordinator.core.observation import StepSummary
from coordinator.core.prompt_logprobs import PromptLogprobs
from coordinator.core.request import FinishReason
from coordinator.core.step import StepOutput
from coordinator.core.step_record import step_record
from coordinator.engine.live_request import LiveRequest
from coordinator.engine.micro_batches import MicroBatch
from coordinator.engine.time_vector import TimeVector
from coordinator.text.stop_strings import TextDelta
from stagecoach.contract.step_record import StepInstants, StepRecord


class NewToken(NamedTuple):
    """A token that was sampled and not sent yet."""

    live: LiveRequest
    token_id: int
    reason: FinishReason | None
    """Why it is the last one; None when others follow, or when that is not known yet."""
    is_hidden: bool
    """True for one that is no part of the output: an end token, or any where none is wanted."""
    delta: TextDelta | None
    """Its text; None when that is still to be made."""
    logprobs: TokenLogprobs | None
    """Log-probabilities of the token; None when the request wants none."""

    def send(self) -> None:
        """Sends the token to its client; an end token goes with the end."""
        if not self.is_hidden:
            delta = self.delta or self.live.text.push(self.token_id)
            self.live.emit(self.token_id, delta, self.logprobs)
        elif self.logprobs is not None:
            self.live.end_token = (self.token_id, self.logprobs)


def take_tokens(
    live: LiveRequest, token_ids: Sequence[int], logprobs: Sequence[TokenLogprobs]
) -> Iterator[NewToken]:
    """Takes the newest tokens of a request, up to the one that ends it.

    Args:
        live: Its sequence has the tokens already, and its sampler all but the last.
        token_ids: At least one.
        logprobs: One for each; empty where none are wanted.
    """
    last = len(token_ids) - 1
    for index, token_id in enumerate(token_ids):
        one = logprobs[index] if logprobs else None
        token = _take_token(live, token_id, one, is_newest=index == last)
        yield token
        if token.reason is not None:
            return


def _take_token(
    live: LiveRequest, token_id: int, logprobs: TokenLogprobs | None, *, is_newest: bool
) -> NewToken:
    """Counts a token of a request, and decides whether it is the last.

    Makes its text only if that decides it. While the sampler is not ready, it is not known whether
    anything may follow; see `LiveRequest.finish_reason`.
    """
    if live.request.max_tokens == 0:
        return NewToken(live, token_id, FinishReason.LENGTH, True, None, None)
    if token_id in live.request.stop_token_ids:
        return NewToken(live, token_id, FinishReason.STOP, True, None, logprobs)
    if is_newest:
        live.sampler.append(token_id)
    delta = live.text.push(token_id) if live.request.stop else None
    if delta is not None and delta.stopped:
        reason: FinishReason | None = FinishReason.STOP
    else:
        reason = live.finish_reason if is_newest and live.sampler.is_ready else None
    return NewToken(live, token_id, reason, False, delta, logprobs)


class SentTokens(NamedTuple):
    """What `LandedStep.send` did."""

    tokens: list[NewToken]
    """New tokens of requests that had not ended meanwhile."""
    last_tokens: list[NewToken]
    """Tokens of `tokens` that end their requests, which is still to be done."""
    instants: StepInstants
    """Instants of the step, which is over with this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LandedStep:
    """What came back, with the new tokens of every sequence that took any."""

    micro_batch: MicroBatch
    result: StepOutput
    tokens: list[NewToken]
    num_failed_drafts: int
    """Rows that were guessed in vain."""
    prompt_logprobs: Mapping[str, PromptLogprobs]
    """Log-probabilities of the prompts in it, by request id."""
    hidden_sums: Mapping[str, Sequence[float]]
    """Sums of hidden states of the prompts in it that are embedded, by request id."""
    sampling_ns: int
    sampled_ns: int
    decided_ns: int
    """These three as `StepInstants` has them."""
    clock: Callable[[], int]
    """The clock of the lane; all instants of the step are read from it."""

    def send(self, requests: Mapping[str, LiveRequest]) -> SentTokens:
        """Sends the tokens, and counts the step's times for every request that took part.

        Args:
            requests: Requests that have not ended meanwhile; the others hear nothing more.
        """
        emitting_ns = self.clock()
        tokens = [
            token for token in self.tokens if requests.get(token.live.request_id) is token.live
        ]
        for live in self.micro_batch.participants:
            if requests.get(live.request_id) is not live:
                continue
            logprobs = self.prompt_logprobs.get(live.request_id)
            if logprobs is not None:
                live.emit_prompt(logprobs)
            hidden_sum = self.hidden_sums.get(live.request_id)
            if hidden_sum is not None and live.pooling is not None:
                live.pooling.add(hidden_sum)
        for token in tokens:
            token.send()
        micro_batch = self.micro_batch
        instants = StepInstants(
            started_ns=micro_batch.started_ns,
            scheduled_ns=micro_batch.scheduled_ns,
            sampling_ns=self.sampling_ns,
            sampled_ns=self.sampled_ns,
            decided_ns=self.decided_ns,
            emitting_ns=emitting_ns,
            emitted_ns=self.clock(),
        )
        times = TimeVector.of_step(
            schedule_ns=instants.schedule_ns,
            sample_ns=instants.sample_ns,
            detokenize_ns=instants.detokenize_ns,
            step_ns=instants.step_ns,
            stages=self.result.stage_timings,
        )
        for live in micro_batch.participants:
            if requests.get(live.request_id) is live:
                live.add_step(times)
        last_tokens = [token for token in tokens if token.reason is not None]
        return SentTokens(tokens, last_tokens, instants)

    def summary(self, sent: SentTokens) -> StepSummary:
        """Tells observers what the step did; notes when the tokens were sent.

        Several tokens of one request share the time since the one before them.
        """
        emitted_ns = sent.instants.emitted_ns
        inter_token_ns: dict[int, int] = {}
        num_by_request = Counter(token.live for token in sent.tokens if not token.is_hidden)
        for live, num_tokens in num_by_request.items():
            if live.last_sent_ns is not None:
                waited_ns = (emitted_ns - live.last_sent_ns) // num_tokens
                inter_token_ns[waited_ns] = inter_token_ns.get(waited_ns, 0) + num_tokens
            live.last_sent_ns = emitted_ns
        num_prefill_tokens, num_decode_tokens = self.micro_batch.output.count_tokens()
        return StepSummary(
            num_prefill_tokens=num_prefill_tokens,
            num_decode_tokens=num_decode_tokens,
            num_sent_tokens=num_by_request.total(),
            inter_token_ns=inter_token_ns,
            stages=self.result.stage_timings,
        )

    def record(self, sent: SentTokens) -> StepRecord:
        """Tells what the step did and when."""
        return step_record(self.micro_batch.output, self.result, sent.instants)
