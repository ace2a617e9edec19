"""How many micro-batches are in flight: guessed from measured times, confirmed by measured rates.

Several micro-batches in flight keep more stages busy. But each of them reads the weights again, and
stages that share cores get into each other's way. Nobody knows beforehand which effect dominates.

A guess comes from the times of micro-batches (`StepTimes`): a round takes the longer of one
micro-batch through all stages, and all micro-batches through the slowest stage. Trials measure the
rate that another depth really reaches, and scale its guess by measured over guessed gain (`trust`).
Depth 1 is always among the candidates, so a depth that is worse than 1 does not stay for long.

         new load: the depth with the best guess
        +----------------------------------------+
        |                                        v
    +---------------------+  window full,    +--------------------------+
    | SETTLED at depth d  |  pause over,     | TRIAL of depth t         |
    | measures rate(d)    |  a candidate t   | measures rate(t)         |
    | over windows        | ---------------> | over one window,         |
    |                     |                  | or one hopeless round    |
    +---------------------+                  +--------------------------+
        ^                                        |
        +--- load moved: no verdict, stay at d --+
        +--- rate(t) worse: verdict on t, stay --+
        +--- rate(t) better: verdict on d, d = t +

A new load ends a trial too, and so does a pipeline that runs empty. A depth with a verdict is not
tried for a while, and each further failure doubles that time. Trust and verdicts are kept for each
size of load: load comes in bursts, and without them each burst would begin with the trials of the
last.
"""

from dataclasses import dataclass

from coordinator.scheduler.load import Load, StepBudget
from coordinator.scheduler.rate_window import Landing, RateWindow
from coordinator.scheduler.step_times import LIKELY_FIXED_SHARE, StepTimes
from coordinator.scheduler.throttle import step_budget

MIN_GAIN = 1.01
"""A deeper pipeline must be better by this much; about equal, the shallower one is taken."""

_WINDOW_ROUNDS = 4
_WINDOW_NS = 50_000_000
"""A rate is measured over at least this many rounds and at least this time."""

_HOPELESS = 0.8
"""A trial ends at once when its rate after one round is less than this share of the base rate."""

_PAUSE = 64
"""Windows between the starts of two trials. The next trial starts at once after a success, after
the first comparison with depth 1, and when a result makes another depth look better."""

_VERDICT = 64
"""Windows for which a depth that failed is not tried; each further failure doubles them."""

_MAX_DOUBLINGS = 8

_NEW_LOAD = 1.5
"""A load that changed by this factor is guessed anew."""


@dataclass(slots=True, kw_only=True)
class _Arm:
    """What is known of one depth."""

    trust: float = 1.0
    """Measured over guessed gain, against depth 1."""
    verdict_until_ns: int = 0
    """Until then it is not tried."""
    num_failures: int = 0


@dataclass(slots=True, kw_only=True)
class _Trial:
    """A depth that is being compared with the current one."""

    window: RateWindow
    base: RateWindow
    """The last window at the current depth."""
    load: Load


class DepthChooser:
    """Chooses among `1..max_depth`. Deterministic: no clock but the one of its observations.

    Args:
        num_stages: Stages of the pipeline.
        max_depth: Most micro-batches in flight.
        max_num_batched_tokens: Tokens in one micro-batch.
        times: Measured times of micro-batches; the owner keeps them up to date.
    """

    def __init__(
        self, *, num_stages: int, max_depth: int, max_num_batched_tokens: int, times: StepTimes
    ) -> None:
        self._num_stages = num_stages
        self._max_num_batched_tokens = max_num_batched_tokens
        self._times = times
        self._arms = {depth: _Arm() for depth in range(1, max_depth + 1)}
        """What was measured at each depth, under the load that the depth was guessed for."""
        self._arms_by_size: dict[int, dict[int, _Arm]] = {}
        self._depth = 1
        self._window = RateWindow(1)
        self._trial: _Trial | None = None
        self._next_trial_ns = 0
        self._guessed: Load | None = None
        """The load that the depth was guessed for."""

    def choose(self, load: Load) -> int:
        """Micro-batches that should be in flight; at most one a sequence, at least one."""
        most = min(len(self._arms), load.num_sequences)
        if most <= 1:
            return 1
        if not self._times.is_known:  # the first prompts: no reason to leave a stage idle
            return max(1, min(most, load.num_prefills, self._num_stages))
        if self._guessed is None or _is_new(self._guessed, load) or self._aim > most:
            self._guess(load, most)
        return self._aim

    def observe(self, landing: Landing) -> None:
        """Takes in a micro-batch that came back."""
        if self._trial is not None:
            self._trial.window.add(landing)
            self._judge(self._trial, landing.landed_ns)
            return
        window = self._window
        window.add(landing)
        if _is_full(window):
            self._window = RateWindow(self._depth, is_filling=False)
            self._begin_trial(window, landing)

    def interrupt(self) -> None:
        """Forgets what is half measured: the pipeline ran empty, or a stage was lost."""
        self._stop_trial(self._depth)

    def _guess(self, load: Load, most: int) -> None:
        """Takes the depth with the best guess, corrected by what trials found."""
        # A prompt that arrives makes no pipeline shallower: streams would wait for room in it, and
        # then for the prompt.
        is_prompt_new = self._guessed is not None and load.num_prefills > self._guessed.num_prefills
        least = min(self._aim, most) if is_prompt_new else 1
        self._guessed = load
        self._arms = self._arms_at(load)
        best, best_score = least, self._score(least, load)
        for depth in range(least + 1, most + 1):
            score = self._score(depth, load)
            if score > best_score * MIN_GAIN:
                best, best_score = depth, score
        if best != self._depth or self._trial is not None:
            self._stop_trial(best)

    def _arms_at(self, load: Load) -> dict[int, _Arm]:
        """What is known at loads of this size, which is a doubling wide.

        At a new one, that is what guesses were worth at the last.
        """
        size = load.num_sequences.bit_length()
        if size not in self._arms_by_size:
            self._arms_by_size[size] = {
                depth: _Arm(trust=arm.trust) for depth, arm in self._arms.items()
            }
        return self._arms_by_size[size]

    @property
    def _aim(self) -> int:
        return self._depth if self._trial is None else self._trial.window.depth

    def _score(self, depth: int, load: Load) -> float:
        return self._guessed_rate(depth, load) * self._arms[depth].trust

    def _guessed_rate(
        self, depth: int, load: Load, *, fixed_share: float = LIKELY_FIXED_SHARE
    ) -> float:
        """Tokens per nanosecond that the times of micro-batches promise."""
        budget = self._budget(depth, load)
        num_decodes = min(budget.max_num_decodes, load.num_decodes)
        num_prefill_tokens = min(budget.max_num_prefill_tokens, load.num_prefill_tokens)
        time = self._times.of(num_decodes + num_prefill_tokens, fixed_share=fixed_share)
        round_ns = max(time.total_ns + time.wire_ns, depth * time.slowest_ns)
        num_prefilling = min(depth, load.num_prefills)
        return (load.num_decodes + num_prefilling * num_prefill_tokens) / max(1.0, round_ns)

    def _budget(self, depth: int, load: Load) -> StepBudget:
        return step_budget(
            load,
            depth=depth,
            max_num_batched_tokens=self._max_num_batched_tokens,
            times=self._times,
        )

    def _cuts_prompts(self, load: Load) -> bool:
        """True while streams wait for pieces of prompts; a trial would hold them up once more."""
        if load.num_decodes == 0:
            return False
        max_num_tokens = self._budget(self._depth, load).max_num_prefill_tokens
        return load.num_prefill_tokens > max_num_tokens * load.num_prefills

    def _begin_trial(self, base: RateWindow, landing: Landing) -> None:
        now_ns, load = landing.landed_ns, landing.load
        if now_ns < self._next_trial_ns or self._cuts_prompts(load):
            return
        candidate = self._candidate(now_ns, load)
        if candidate is not None:
            self._trial = _Trial(window=RateWindow(candidate), base=base, load=load)
            self._next_trial_ns = now_ns + _PAUSE * base.elapsed_ns

    def _candidate(self, now_ns: int, load: Load) -> int | None:
        """The depth that is most worth a trial; None when none is."""
        open_arms = self._open_arms(now_ns, load)
        if 1 in open_arms:
            return 1
        own = self._score(self._depth, load)
        best, best_gain = None, 0.0
        for depth, arm in open_arms.items():
            hope = self._guessed_rate(depth, load, fixed_share=0.0) * max(1.0, arm.trust)
            gain = hope / own
            if gain > max(best_gain, MIN_GAIN if depth > self._depth else 1.0):
                best, best_gain = depth, gain
        return best

    def _open_arms(self, now_ns: int, load: Load) -> dict[int, _Arm]:
        """The other depths that may be tried now."""
        return {
            depth: arm
            for depth, arm in self._arms.items()
            if depth != self._depth
            and depth <= load.num_sequences
            and arm.verdict_until_ns <= now_ns
        }

    def _promises(self, now_ns: int, load: Load) -> bool:
        """True when what was measured promises that a depth which may be tried is better."""
        least = self._score(self._depth, load) * MIN_GAIN
        return any(self._score(depth, load) > least for depth in self._open_arms(now_ns, load))

    def _judge(self, trial: _Trial, now_ns: int) -> None:
        """Ends a trial that has shown what it can."""
        window = trial.window
        if window.has_moved:  # the rate before says nothing
            self._stop_trial(self._depth)
            return
        gain = window.rate / trial.base.rate
        if _is_full(window) or (window.num_rounds >= 1 and gain < _HOPELESS):
            self._conclude(trial, gain, now_ns)

    def _conclude(self, trial: _Trial, gain: float, now_ns: int) -> None:
        """Corrects the guesses by what the trial measured, and takes the better depth."""
        tried, current = trial.window.depth, self._depth
        guessed = self._guessed_rate(tried, trial.load) / self._guessed_rate(current, trial.load)
        if tried == 1:
            self._arms[current].trust = guessed / max(gain, 1e-3)
        else:
            self._arms[tried].trust = self._arms[current].trust * gain / guessed
        if gain >= (MIN_GAIN if tried > current else 1.0):
            loser, winner = current, tried
            if gain * _HOPELESS > 1:  # by so much that something must have changed
                self._void_verdicts(first=2)
        else:
            loser, winner = tried, current
        lost = self._arms[loser]
        was_first_with_one = tried == 1 and lost.num_failures == 0
        lost.verdict_until_ns = now_ns + _VERDICT * trial.base.elapsed_ns * 2**lost.num_failures
        lost.num_failures = min(lost.num_failures + 1, _MAX_DOUBLINGS)
        self._arms[winner].num_failures = 0
        self._stop_trial(winner)
        if winner == tried or was_first_with_one or self._promises(now_ns, trial.load):
            self._next_trial_ns = now_ns

    def _void_verdicts(self, *, first: int) -> None:
        """Lets the depths from `first` on be tried again."""
        for depth, arm in self._arms.items():
            if depth >= first:
                arm.num_failures = arm.verdict_until_ns = 0

    def _stop_trial(self, depth: int) -> None:
        """Goes on at a depth, with nothing measured."""
        self._trial = None
        self._depth = depth
        self._window = RateWindow(depth)


def _is_full(window: RateWindow) -> bool:
    return window.num_rounds >= _WINDOW_ROUNDS and window.elapsed_ns >= _WINDOW_NS


def _is_new(before: Load, now: Load) -> bool:
    """True when a load differs so much that its depth is guessed anew."""
    changed_by = now.num_sequences / before.num_sequences
    began_or_ended_prefill = (before.num_prefills > 0) != (now.num_prefills > 0)
    return began_or_ended_prefill or not 1 / _NEW_LOAD < changed_by < _NEW_LOAD
