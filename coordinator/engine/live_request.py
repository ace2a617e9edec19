"""Everything the engine keeps of a request from admission to its end, in one record.

There is one table of these records, keyed by request id, and no other; so a request that leaves it
is gone.
"""

import time
from collections.abc import Callable
from collections.abc import Sequence as ListLike
from dataclasses import dataclass
from typing import Self

from coordinator.core.events import (
    Accepted,
    Finished,
    TokenLogprobs,
    TokensEvent,
)
from coordinator.core.observation import RequestEnd
from coordinator.core.prompt_logprobs import PromptLogprobs
from coordinator.core.request import FinishReason, Request
from coordinator.core.sequence import Sequence
from coordinator.engine.request_stream import RequestStream
from coordinator.engine.time_vector import TimeVector
from coordinator.sampling.constraint import Constraint
from coordinator.sampling.prompt_pooling import PromptPooling
from coordinator.sampling.token_sampler import TokenSampler
from coordinator.text.divided_text import DividedText
from coordinator.text.output_text import OutputText
from coordinator.text.stop_strings import TextDelta
from stagecoach.contract.errors import StagecoachError
from stagecoach.contract.request_timings import RequestTimings, StepTotals


@dataclass(slots=True, kw_only=True, eq=False)
class LiveRequest:
    """State of one request; only the engine's task changes it."""

    request: Request
    sequence: Sequence
    sampler: TokenSampler
    text: OutputText | DividedText
    stream: RequestStream
    times: TimeVector
    """Sums over the steps that the request took part in."""
    pooling: PromptPooling | None = None
    """Its embedding as it grows; None where none is wanted."""
    num_steps: int = 0
    prefill: StepTotals | None = None
    """Sums over the steps until the first token was sampled."""
    num_completion_tokens: int = 0
    end_token: tuple[int, TokenLogprobs] | None = None
    """See `Finished.end_token`."""
    first_step_ns: int | None = None
    first_token_ns: int | None = None
    last_sent_ns: int | None = None
    """When its latest token was sent."""
    clock: Callable[[], int] = time.perf_counter_ns
    """The one clock of its life: its arrival, its steps and its end are instants of it."""

    @classmethod
    def of(
        cls,
        sequence: Sequence,
        *,
        num_stages: int,
        vocab_size: int,
        text: OutputText | DividedText,
        constraint: Constraint | None,
        relaxed_fields: tuple[str, ...] = (),
        on_cancel: Callable[[], None],
        clock: Callable[[], int] = time.perf_counter_ns,
    ) -> Self:
        """Makes the record of a request that was just accepted.

        Args:
            sequence: The request's sequence, from the scheduler.
            num_stages: Stages of the pipeline that serves it.
            vocab_size: Logits in a row.
            text: Makes its text, of which there is none so far.
            constraint: What its output must match, with no output so far; None: anything.
            relaxed_fields: Fields with schemas that the output is not held to.
            on_cancel: Called at most once, when the client cancels.
            clock: By which the request arrived, in nanoseconds; that of its lanes.
        """
        request = sequence.request
        accepted = Accepted(
            request_id=request.request_id,
            prompt_token_ids=request.prompt_token_ids,
            relaxed_fields=relaxed_fields,
        )
        return cls(
            request=request,
            sequence=sequence,
            sampler=TokenSampler(
                request.sampling,
                prompt_token_ids=request.prompt_token_ids,
                vocab_size=vocab_size,
                logprobs=request.logprobs,
                constraint=constraint,
                min_tokens=request.min_tokens,
                end_token_ids=request.stop_token_ids,
            ),
            text=text,
            stream=RequestStream(accepted, on_cancel),
            times=TimeVector.zeros(num_stages),
            pooling=None
            if request.embedding is None
            else PromptPooling(request.embedding, sequence.num_prompt_tokens),
            clock=clock,
        )

    @property
    def request_id(self) -> str:
        """Id of the request."""
        return self.request.request_id

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why nothing may follow the output so far; None when something may. Once ready."""
        if self.sampler.is_complete:
            return FinishReason.STOP
        return FinishReason.LENGTH if self.sequence.at_max_tokens else None

    def add_step(self, times: TimeVector) -> None:
        """Counts a step that the request took part in."""
        self.num_steps += 1
        self.times.add(times)
        if self.prefill is None and self.sequence.output_token_ids:
            self.prefill = self.times.totals(self.num_steps)

    def emit(self, token_id: int, delta: TextDelta, logprobs: TokenLogprobs | None) -> None:
        """Sends a token that belongs to the output, with what became of its text."""
        if self.first_token_ns is None:
            self.first_token_ns = self.clock()
        self.num_completion_tokens += 1
        self.stream.put(
            TokensEvent(
                token_ids=(token_id,),
                text=delta.text,
                logprobs=() if logprobs is None else (logprobs,),
                text_ends=() if logprobs is None else (self.text.num_chars,),
                parts=delta.parts,
            )
        )

    def emit_prompt(self, logprobs: PromptLogprobs) -> None:
        """Sends log-probabilities of the prompt, behind those that were sent before."""
        self.stream.put_prompt(logprobs)

    def end(self, reason: FinishReason, held: TextDelta) -> None:
        """Sends the terminal event.

        Args:
            reason: Why.
            held: Text that was held back.
        """
        self.stream.end(
            Finished(
                finish_reason=reason,
                text=held.text,
                parts=held.parts,
                stop_string=self.text.stop_string,
                num_calls=self.text.num_calls,
                num_reasoning_tokens=self.text.num_reasoning_tokens,
                num_prompt_tokens=self.sequence.num_prompt_tokens,
                num_completion_tokens=self.num_completion_tokens,
                num_cached_tokens=self.sequence.num_cached_tokens,
                timings=self._timings(),
                end_token=self.end_token,
                embedding=self._embedding(reason),
            )
        )

    def as_ended(self, reason: FinishReason, error: StagecoachError | None) -> RequestEnd:
        """Says for observers how the request ended just now."""
        return RequestEnd(
            request_id=self.request_id,
            reason=reason,
            error=error,
            num_prompt_tokens=self.sequence.num_prompt_tokens,
            num_completion_tokens=self.num_completion_tokens,
            num_cached_tokens=self.sequence.num_cached_tokens,
            num_steps=self.num_steps,
            num_preemptions=self.sequence.num_preemptions,
            num_replays=self.sequence.num_replays,
            arrival_ns=self.request.arrival_ns,
            first_step_ns=self.first_step_ns,
            first_token_ns=self.first_token_ns,
            end_ns=self.clock(),
        )

    def _embedding(self, reason: FinishReason) -> ListLike[float] | None:
        """The embedding of the prompt; None where none is wanted, or not all of it was computed."""
        if self.pooling is None or reason is FinishReason.ABORT:
            return None
        return self.pooling.embedding()

    def _timings(self) -> RequestTimings:
        now_ns, arrival_ns = self.clock(), self.request.arrival_ns
        totals = self.times.totals(self.num_steps)
        return RequestTimings(
            queue_ns=(self.first_step_ns or now_ns) - arrival_ns,
            time_to_first_token_ns=self.first_token_ns and self.first_token_ns - arrival_ns,
            total_ns=now_ns - arrival_ns,
            num_steps=totals.num_steps,
            schedule_ns=totals.schedule_ns,
            sample_ns=totals.sample_ns,
            detokenize_ns=totals.detokenize_ns,
            stages=totals.stages,
            step_ns=totals.step_ns,
            num_preemptions=self.sequence.num_preemptions,
            num_replays=self.sequence.num_replays,
            prefill=self.prefill,
        )
