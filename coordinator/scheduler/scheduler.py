"""The scheduler: which tokens of which sequences run next. Data in, data out.

A sequence's `num_computed_tokens` catches up with its `num_tokens` under the token budget; chunked
prefill, decode and recomputation after a preemption are this one subtraction.

  adopt --> waiting --- admitted --> running --- finish --> finished
               ^                        |
               +------- preempted ------+

With the prefix cache, a sequence that is admitted starts after the tokens whose KV a slot holds
already; see `kv_memory`.

The caller's loop: `schedule`, run the output through the stages, sample, `update`, and `finish`
the sequences that ended. Several outputs may be in flight, and come back in any order; a sequence
is in at most one of them. Where it pays, a slice that decodes goes on with guessed tokens, drafts;
`update` keeps those that proved right. Not thread-safe: one task owns the scheduler.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from collections.abc import Sequence as ListLike
from itertools import count, islice

from coordinator.core.drafter import Guess
from coordinator.core.request import FinishReason
from coordinator.core.sequence import Sequence, SequenceState
from coordinator.core.step import PooledRows, PromptRows, ScheduledSlice, SchedulerOutput
from coordinator.scheduler.config import SchedulerConfig
from coordinator.scheduler.draft_lengths import MAX_DRAFTS, draft_lengths, may_pay
from coordinator.scheduler.entrance import Entrance
from coordinator.scheduler.kv_memory import KvMemory
from coordinator.scheduler.load import Load, StepBudget
from coordinator.scheduler.policy import FirstComeFirstServed, Policy
from coordinator.scheduler.prefill_split import PrefillSplit, Share
from coordinator.scheduler.running_sequences import RunningSequences
from coordinator.scheduler.step_room import StepRoom


class Scheduler:
    """Continuous batching under a token budget and the KV memory of the smallest stage.

    Every sequence ends: the first of the running ones can always go on, because it may preempt
    all others and fits alone; and preempted ones are admitted before new ones.

    A suspect, which was in what a stage broke on time and again, runs alone until it has a token.

    Args:
        config: The limits.
        policy: The order of the sequences; None for first come, first served.
        micro_batch_ids: Rising; None for ids of its own. Schedulers that work side by side share
            them.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        *,
        policy: Policy | None = None,
        micro_batch_ids: Iterator[int] | None = None,
    ) -> None:
        self.config = config
        self._sequences: dict[str, Sequence] = {}
        self._running = RunningSequences()
        self._suspects: dict[str, Sequence] = {}
        self._memory = KvMemory(config)
        self._entrance = Entrance(
            config, policy or FirstComeFirstServed(), self._memory, self._running
        )
        self._micro_batch_ids = count() if micro_batch_ids is None else micro_batch_ids
        self.num_preemptions = 0
        """Times that a sequence gave up its KV to others."""
        self.num_replays = 0
        """Times that a sequence lost its KV to a fault, and is computed again."""
        self.num_draft_tokens = 0
        """Guessed tokens that came back checked."""
        self.num_accepted_draft_tokens = 0
        """Tokens of `num_draft_tokens` that were right."""

    @property
    def num_waiting(self) -> int:
        """Sequences without a slot, preempted ones included."""
        return self._entrance.num_waiting

    @property
    def num_running(self) -> int:
        """Sequences with a slot."""
        return len(self._running)

    @property
    def num_free_kv_blocks(self) -> int:
        """Blocks of the smallest stage that no running sequence holds or has reserved."""
        return self._memory.num_free_blocks

    @property
    def num_cached_kv_blocks(self) -> int:
        """Free blocks that hold prefixes; given up when a sequence wants them."""
        return self._memory.num_cached_blocks

    @property
    def num_prefix_query_tokens(self) -> int:
        """Tokens of all prompts that were admitted."""
        return self._entrance.num_prefix_query_tokens

    @property
    def num_prefix_hit_tokens(self) -> int:
        """Tokens of `num_prefix_query_tokens` that the prefix cache held."""
        return self._entrance.num_prefix_hit_tokens

    @property
    def has_work(self) -> bool:
        """True while a sequence has not ended or the stages must still be told of a slot."""
        return bool(self._sequences) or self._memory.has_untold_ops

    def holds(self, request_id: str) -> bool:
        """True for a sequence from `adopt` until it is handed over, or swept after its end."""
        return request_id in self._sequences

    @property
    def waiting(self) -> Iterable[Sequence]:
        """Sequences without a slot, the most senior first."""
        return self._entrance.waiting

    def num_prefix_tokens(self, sequence: Sequence) -> int:
        """Tokens of a waiting sequence that the prefix cache holds at present."""
        return self._memory.num_prefix_tokens(sequence)

    def fits(self, sequence: Sequence) -> bool:
        """True when nothing waits here and one that waits elsewhere could run at once."""
        return self._entrance.fits(sequence)

    def load(self) -> Load:
        """Counts what there is to do; waiting sequences as far as there are slots for them."""
        num_decodes = num_prefills = num_prefill_tokens = 0
        for sequence in self._running:
            if sequence.is_decoding:
                num_decodes += 1
            else:
                num_prefills += 1
                num_prefill_tokens += sequence.num_uncomputed_tokens
        num_empty_kv_tokens = self.num_free_kv_blocks * self.config.kv_block_size
        num_empty_kv_tokens += num_prefill_tokens  # reserved, and not computed yet
        for sequence in islice(self.waiting, self.config.max_num_seqs - len(self._running)):
            num_prefills += 1
            num_prefill_tokens += sequence.num_tokens
        return Load(
            num_decodes=num_decodes,
            num_prefills=num_prefills,
            num_prefill_tokens=num_prefill_tokens,
            empty_kv_share=min(1.0, num_empty_kv_tokens / self.config.num_kv_tokens),
        )

    def schedule(self, budget: StepBudget | None = None) -> SchedulerOutput | None:
        """Decides the next micro-batch: those that decode first, then prompts.

        Every sequence in it is in flight until the output goes to `update` or `requeue`, or
        `preempt_all` gives up everything. An output without slices only has slot operations; it
        too goes to the stages, after all earlier ones.

        Args:
            budget: What this micro-batch may hold, so that the rest is left for the next ones;
                None for the limits of the configuration alone. A suspect runs alone, whatever the
                budget.

        Returns:
            None when there is nothing to run and nothing to tell the stages now.
        """
        room = StepRoom(self.config.max_num_batched_tokens, None if self._suspects else budget)
        micro_batch_id = next(self._micro_batch_ids)
        shares = self._alone(room) if self._suspects else self._shares(room)
        slices = [self._take(share, micro_batch_id) for share in shares]  # one by one: see there
        if budget is not None and budget.duration_ns is not None and not self._suspects:
            slices = self._with_drafts(slices, budget.duration_ns)
        slot_ops = self._memory.take_slot_ops()
        if not slices and not slot_ops:
            return None
        return SchedulerOutput(
            micro_batch_id=micro_batch_id, slices=tuple(slices), slot_ops=slot_ops
        )

    def update(
        self, output: SchedulerOutput, sampled: Mapping[str, ListLike[int]]
    ) -> list[Sequence]:
        """Takes in what became of a micro-batch.

        Ends no sequence by itself, but for those already marked by `finish`: the caller, who knows
        stop tokens and stop strings, calls `finish` for each that is done, `at_max_tokens`
        included, before the next `schedule`. So all finish conditions and their precedence are in
        one place.

        Args:
            output: What `schedule` returned. One that was given up meanwhile changes nothing.
            sampled: Next tokens by request id, for each slice with sampled rows: at least one, and
                at most one a row. All but the last are the drafts of the slice that are kept; the
                KV of the others is dropped. The tokens may be left out, and are dropped, for a
                sequence that was finished meanwhile.

        Returns:
            The sequences that took tokens, in the order of the slices.
        """
        advanced: list[Sequence] = []
        for piece, sequence in self._land(output):
            goes_on = sequence.finish_reason is None
            tokens: ListLike[int] = ()
            if goes_on and piece.num_sampled_rows:
                tokens = sampled[piece.request_id]
                sequence.output_token_ids += tokens
                if piece.num_drafts:
                    self.num_draft_tokens += piece.num_drafts
                    self.num_accepted_draft_tokens += len(tokens) - 1
                if sequence.num_blames:
                    self._acquit(sequence)
                advanced.append(sequence)
            if goes_on and piece.prompt_rows is not None:
                sequence.num_known_logprobs += len(piece.prompt_rows.next_token_ids)
            if goes_on and piece.pooled_rows is not None:
                sequence.num_pooled_tokens += piece.pooled_rows.num_rows
            sequence.num_computed_tokens += piece.num_computed_tokens(len(tokens))
            self._memory.note_computed(sequence)
            if not goes_on:
                self._sweep(sequence)
        return advanced

    def finish(self, request_id: str, reason: FinishReason) -> bool:
        """Ends a sequence in any state: now, or when its micro-batch is back if it is in flight.

        Returns:
            True for exactly one call a request; False when it has ended or is not known.
        """
        sequence = self._sequences.get(request_id)
        if sequence is None or sequence.finish_reason is not None:
            return False
        sequence.finish_reason = reason
        if not sequence.in_flight:
            self._sweep(sequence)
        return True

    def requeue(self, output: SchedulerOutput) -> list[Sequence]:
        """Gives up a micro-batch that failed: its sequences wait again, their KV is recomputed.

        Stages may have run it or not; none runs it from now on. All retained prefixes are given up
        too, so that what failed is not built upon.

        Args:
            output: What `schedule` returned. One that was given up before changes nothing.

        Returns:
            The sequences that wait again, each with one more blame. Those that were marked by
            `finish` have ended instead.
        """
        lost = [sequence for _, sequence in self._land(output)]
        for sequence in lost:
            self._blame(sequence)
        self._memory.distrust(output.slot_ops)
        return self._give_up(lost)

    def preempt_all(self, blamed: Collection[int] = ()) -> list[Sequence]:
        """Gives up every micro-batch in flight and all KV, as after the loss of a stage.

        Stages may have run any part of what was in flight; none runs it from now on. All slots
        are freed, so stages that were not lost hold nothing afterwards.

        Args:
            blamed: Ids of the micro-batches that a stage may have been lost by.

        Returns:
            The sequences that wait again; those in a blamed micro-batch have one more blame.
            Those that were marked by `finish` have ended instead.
        """
        lost = list(self._running)
        for sequence in lost:
            if sequence.micro_batch_id in blamed:
                self._blame(sequence)
            sequence.micro_batch_id = None
        requeued = self._give_up(lost)
        self._memory.forget()
        return requeued

    def adopt(self, sequence: Sequence) -> None:
        """Takes in a sequence that waited elsewhere, behind those of its rank that wait here.

        One that has run before goes in front of these.
        """
        assert sequence.state is SequenceState.WAITING
        assert sequence.request_id not in self._sequences, "an id stands for one request"
        self._sequences[sequence.request_id] = sequence
        self._entrance.add(sequence)
        if sequence.is_suspect:
            self._suspects[sequence.request_id] = sequence

    def hand_over(self, sequence: Sequence) -> Sequence:
        """Gives up a sequence that waits, for another scheduler to adopt."""
        assert sequence.state is SequenceState.WAITING
        self._entrance.remove(sequence)
        del self._sequences[sequence.request_id]
        self._suspects.pop(sequence.request_id, None)
        return sequence

    def hand_over_all(self) -> list[Sequence]:
        """Gives up all that wait, for other schedulers to adopt one by one, in this order.

        Those that meet again in another scheduler wait there in the order in which they wait here.
        """
        return [self.hand_over(sequence) for sequence in self._entrance.in_moving_order()]

    def check_integrity(self) -> None:
        """Asserts that all tables agree; cheap enough for whenever nothing runs."""
        waiting = {sequence.request_id: sequence for sequence in self.waiting}
        running = {sequence.request_id: sequence for sequence in self._running}
        assert waiting.keys().isdisjoint(running), "a sequence both waits and runs"
        assert self._sequences == waiting | running, "a sequence neither waits nor runs"
        order = [sequence.seniority for sequence in self.waiting]
        assert order == sorted(order), "the queue is not in order"
        ranks = [sequence.rank for sequence in self._running]
        assert ranks == sorted(ranks), "one would be preempted before its turn"
        suspects = {name: one for name, one in self._sequences.items() if one.is_suspect}
        assert self._suspects == suspects, "a suspect is not known as one"
        for sequence in waiting.values():
            assert sequence.state is SequenceState.WAITING
            assert sequence.kv_slot is None
            assert sequence.num_computed_tokens == 0
            assert not sequence.in_flight
            assert sequence.finish_reason is None
        for sequence in self._running:
            assert sequence.state is SequenceState.RUNNING
            assert 0 <= sequence.num_computed_tokens < sequence.num_tokens
            assert sequence.in_flight or sequence.finish_reason is None
            assert sequence.kv_slot is not None
        self._memory.check_integrity(running.values())

    def _shares(self, room: StepRoom) -> Iterator[Share]:
        """Yields sequences that hold the blocks of all their tokens; preempts and admits lazily."""
        prompts: list[Sequence] = []
        admits = True
        for sequence in tuple(self._running):
            if sequence.in_flight or sequence.is_held or sequence.kv_slot is None:
                continue  # without a slot: it was preempted in this very loop
            if not sequence.is_decoding:
                prompts.append(sequence)
            elif admits and room.num_decodes > 0:
                admits = self._make_room(sequence)
                if admits:  # else all that come later in the order are in flight
                    room.take_decode()
                    yield sequence, 1
        if room.num_prefill_tokens > 0:
            prompts = [sequence for sequence in prompts if sequence.kv_slot is not None]
            yield from PrefillSplit(room, prompts, self._entrance, admits=admits).shares()

    def _with_drafts(
        self, slices: list[ScheduledSlice], duration_ns: Callable[[int], float]
    ) -> list[ScheduledSlice]:
        """Adds guessed tokens to slices that decode, as far as they pay; not beside prompts."""
        num_decodes = len(slices)
        if not num_decodes or not all(piece.is_decode for piece in slices):
            return slices
        room = self.config.max_num_drafts(num_decodes)
        if room < 1 or not may_pay(duration_ns, num_decodes):
            return slices
        sequences = [self._sequences[piece.request_id] for piece in slices]
        guesses = [_guess(sequence) for sequence in sequences]
        lengths = draft_lengths(
            guesses,
            num_decodes=num_decodes,
            max_num_drafts=room,
            duration_ns=duration_ns,
        )
        return [
            _followed(piece, guess.token_ids[:length])
            if length and self._memory.grow(sequence, num_drafts=length)
            else piece
            for piece, sequence, guess, length in zip(
                slices, sequences, guesses, lengths, strict=True
            )
        ]

    def _alone(self, room: StepRoom) -> Iterator[Share]:
        """Yields a suspect once no other sequence is in flight."""
        if any(sequence.in_flight for sequence in self._running):
            return
        suspect = next(iter(self._suspects.values()))
        if suspect.is_held:
            return
        if suspect.state is SequenceState.WAITING:
            while not self._entrance.admit_alone(suspect):
                self._preempt(self._running.victim, keep_kv=True)
        yield suspect, room.take(suspect)  # it holds the blocks of all its tokens

    def _make_room(self, sequence: Sequence) -> bool:
        """Grows a running sequence, at the cost of those that come after it in the order.

        Never preempts the sequence itself: its KV is kept until one before it wants the blocks, or
        until the ones in flight are back.
        """
        while not self._memory.grow(sequence):
            victim = self._running.victim
            if victim is sequence:
                return False
            self._preempt(victim, keep_kv=True)
        return True

    def _take(self, share: Share, micro_batch_id: int) -> ScheduledSlice:
        """Puts the next tokens of a sequence in flight."""
        sequence, num_tokens = share
        assert sequence.kv_slot is not None
        start = sequence.num_computed_tokens
        end = start + num_tokens
        token_ids = sequence.token_ids(start, end)
        sequence.micro_batch_id = micro_batch_id
        # Positional: keywords double the cost of the most frequent call of a step.
        return ScheduledSlice(
            sequence.request_id,
            sequence.kv_slot,
            start,
            tuple(token_ids),
            1 if end == sequence.num_tokens else 0,
            _prompt_rows(sequence, start, end) if sequence.lacks_logprobs else None,
            _pooled_rows(sequence, start, end) if sequence.request.embedding is not None else None,
        )

    def _land(self, output: SchedulerOutput) -> Iterator[tuple[ScheduledSlice, Sequence]]:
        """Takes out of flight, one by one, the sequences that are still in this output."""
        for piece in output.slices:
            sequence = self._sequences.get(piece.request_id)
            if sequence is not None and sequence.micro_batch_id == output.micro_batch_id:
                sequence.micro_batch_id = None
                yield piece, sequence

    def _blame(self, sequence: Sequence) -> None:
        sequence.num_blames += 1
        if sequence.is_suspect:
            self._suspects[sequence.request_id] = sequence

    def _acquit(self, sequence: Sequence) -> None:
        sequence.num_blames = 0
        self._suspects.pop(sequence.request_id, None)

    def _give_up(self, sequences: list[Sequence]) -> list[Sequence]:
        """Preempts sequences whose KV is lost, or sweeps those marked; returns the former."""
        for sequence in reversed(sequences):  # so that the first is the most senior again
            if sequence.finish_reason is not None:
                self._sweep(sequence, keep_kv=False)
            else:
                self._preempt(sequence, keep_kv=False)
        return [sequence for sequence in sequences if sequence.finish_reason is None]

    def _preempt(self, sequence: Sequence, *, keep_kv: bool) -> None:
        self._stop(sequence, keep_kv=keep_kv)
        sequence.state = SequenceState.WAITING
        if keep_kv:
            sequence.num_preemptions += 1
            self.num_preemptions += 1
        else:
            sequence.num_replays += 1
            self.num_replays += 1
        self._entrance.add(sequence)

    def _sweep(self, sequence: Sequence, *, keep_kv: bool = True) -> None:
        """Ends a sequence. Of one that failed nothing is kept: it may have failed by its KV."""
        if sequence.state is SequenceState.RUNNING:
            failed = sequence.finish_reason is FinishReason.ERROR
            self._stop(sequence, keep_kv=keep_kv and not failed)
        else:
            self._entrance.remove(sequence)
        sequence.state = SequenceState.FINISHED
        del self._sequences[sequence.request_id]
        self._suspects.pop(sequence.request_id, None)

    def _stop(self, sequence: Sequence, *, keep_kv: bool) -> None:
        """Takes everything that a running sequence holds; keeps its prefix for others, or not."""
        assert not sequence.in_flight
        self._running.remove(sequence)
        if keep_kv:
            self._memory.retain(sequence)
        else:
            self._memory.release(sequence)


def _guess(sequence: Sequence) -> Guess:
    """What may follow the newest token of a sequence, as far as its output may grow."""
    num_tokens = min(MAX_DRAFTS, sequence.num_draftable_tokens)
    if sequence.drafter is None or num_tokens < 1:
        return Guess()
    return sequence.drafter.guess(num_tokens)


def _followed(piece: ScheduledSlice, draft_token_ids: tuple[int, ...]) -> ScheduledSlice:
    return piece._replace(
        token_ids=piece.token_ids + draft_token_ids, num_sampled_rows=1 + len(draft_token_ids)
    )


def _prompt_rows(sequence: Sequence, start: int, end: int) -> PromptRows | None:
    """Which of the tokens `[start, end)` run for log-probabilities that have not come back.

    After a preemption, those that have come back are run again without being asked for.
    """
    request, first = sequence.request, sequence.num_known_logprobs
    assert start <= first, "a token was skipped whose logits are wanted"
    last = min(end, sequence.num_prompt_tokens - 1)
    if request.prompt_logprobs is None or first >= last:
        return None
    next_token_ids = sequence.token_ids(first + 1, last + 1)
    return PromptRows(first - start, next_token_ids, request.prompt_logprobs)


def _pooled_rows(sequence: Sequence, start: int, end: int) -> PooledRows | None:
    """Which of the tokens `[start, end)` run for hidden states that have not come back.

    After a preemption, those that have come back are run again without being asked for.
    """
    first = sequence.next_pooled_position
    last = min(end, sequence.num_prompt_tokens)
    if first is None or first >= last:
        return None
    assert start <= first, "a token was skipped whose hidden state is wanted"
    return PooledRows(first - start, last - first)
