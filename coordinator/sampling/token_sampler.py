"""Chooses the tokens of one request: says which logits it needs, and draws from them."""

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from itertools import repeat

import numpy as np
import numpy.typing as npt

from coordinator.core.events import TokenLogprobs
from coordinator.core.sampling_params import SamplingParams
from coordinator.core.step import LogitsRow
from coordinator.sampling.changed_tokens import ChangedTokens
from coordinator.sampling.constraint import Constraint
from coordinator.sampling.draw import HEAD_SIZE, draw, weigh
from coordinator.sampling.logprobs import token_logprobs
from coordinator.sampling.noise import noise_key
from coordinator.sampling.parameters import Need, joint_need, truncations_of
from coordinator.sampling.ranking import Ranking
from stagecoach.contract.errors import InternalError
from stagecoach.contract.logits_request import LogitsRequest

_MIN_REDUCTION = 16
"""Candidates are at most this fraction of the vocabulary. A candidate takes twice the bytes of a
logit, and as many again where it is named: so, at most a quarter of the bytes of the full row."""

_NUM_CONTENDERS = 4
"""Contenders that a stage is asked for, of which the best is drawn. One would do if the stage
computed logarithms as numpy does; that four others are all within its rounding of the best happens
once in 10**20 draws."""


class TokenSampler:
    """The sampling state of one request.

    For every token: `logits_request`, then `sample` on the row that came back, then `append`. Where
    it `looks_ahead`, `logits_requests` asks for the rows of guessed tokens too. The
    same seed, prompt and parameters give the same tokens from the same logits, whatever else is in
    the batch and however the rows were reduced. Logits that differ by rounding nearly always give
    the same token too: another one only if two sums of logit and noise are closer than that, or if
    the rounding moves a token over the edge of a truncation. Not thread-safe.
    """

    def __init__(
        self,
        params: SamplingParams,
        *,
        prompt_token_ids: Sequence[int],
        vocab_size: int,
        logprobs: int | None = None,
        constraint: Constraint | None = None,
        min_tokens: int = 0,
        end_token_ids: Collection[int] = (),
    ) -> None:
        """Counts the prompt, if a penalty needs it.

        Args:
            params: Its `seed` is set, unless it is greedy; biased ids lie in `[0, vocab_size)`.
            prompt_token_ids: Each in `[0, vocab_size)`.
            vocab_size: Logits in a row.
            logprobs: As in `Request`.
            constraint: Says which tokens may be chosen; with no output so far, and closed with this
                object. None: all.
            min_tokens: Tokens of output before which `end_token_ids` are impossible; a constraint
                that allows nothing else comes first.
            end_token_ids: Each in `[0, vocab_size)`.
        """
        self._params = params
        # As the wire carries it, so that both ends weigh with the same temperature.
        self._temperature = float(np.float32(params.temperature))
        self._truncations = truncations_of(params)
        self._need = (
            Need(num_candidates=1)
            if self._is_greedy
            else joint_need(self._truncations, self._temperature)
        )
        self._vocab_size = vocab_size
        self._logprobs = logprobs
        self._constraint = constraint
        self._max_candidates = max(HEAD_SIZE, vocab_size // _MIN_REDUCTION)
        self._min_tokens = min_tokens
        self._changed = ChangedTokens.of(
            params, prompt_token_ids, end_token_ids if min_tokens else ()
        )
        self._num_output_tokens = 0

    def logits_request(self, row: int) -> LogitsRequest:
        """Returns the least from which the next token can be chosen exactly.

        - Greedy and top-k need that many candidates. Where bias or penalties change some tokens,
          they need as many more, and the changed tokens by name.
        - Temperature alone needs the few tokens for which logit and noise together are highest.
          The stage computes the noise of all. Changed tokens are treated as above.
        - Top-p needs candidates that hold its share of the mass; min-p needs those down to its
          distance from the highest. The stage sends the full row when the head of the distribution
          does not reach so far.
        - Bias and penalties with top-p or min-p change the mass itself, which takes the full row.
          So does a reduced row that would hardly be smaller.
        - A constraint needs the tokens that it allows, by name. If it allows nearly all, as inside
          a string, it needs as many more candidates or contenders as there are others. Between
          these, and where bias, penalties, truncations or log-probabilities are wanted of many, it
          takes the full row.
        - Log-probabilities need candidates for the most likely tokens, and the mass at
          temperature 1.

        Args:
            row: Row of the micro-batch that holds the last token of the sequence.
        """
        named = None if self._changed is None else self._changed.named
        return self._request(row, named, self._num_output_tokens)

    @property
    def looks_ahead(self) -> bool:
        """True when it can say before a token is output what the one after it takes.

        With a constraint that is known only afterwards.
        """
        return self._constraint is None

    def logits_requests(
        self, first_row: int, draft_token_ids: Sequence[int]
    ) -> list[LogitsRequest]:
        """As `logits_request`, for rows of which all but the first hold guessed tokens.

        Args:
            first_row: Row of the micro-batch that holds the last token of the sequence.
            draft_token_ids: Tokens of the rows after it; only where it `looks_ahead`.

        Returns:
            A request for each row, as if the tokens before it were output.
        """
        assert self.looks_ahead or not draft_token_ids, "a constraint is known too late"
        return [
            self._request(first_row + index, named, self._num_output_tokens + index)
            for index, named in enumerate(self._named_ahead(draft_token_ids))
        ]

    def _named_ahead(self, draft_token_ids: Sequence[int]) -> Iterator[tuple[int, ...] | None]:
        """Yields the tokens that change, now and after each draft; None where none does."""
        changed = self._changed
        if changed is None:
            yield from repeat(None, 1 + len(draft_token_ids))
            return
        yield changed.named
        num_barred = self._min_tokens - self._num_output_tokens
        for number, named in enumerate(changed.named_after(draft_token_ids), 1):
            is_free = number >= num_barred and not changed.outlasts_bar
            yield None if is_free else named

    def _request(
        self, row: int, named: tuple[int, ...] | None, num_output_tokens: int
    ) -> LogitsRequest:
        """The request for a row behind so much output, at which these tokens change."""
        request = self._request_for_choice(row, named, num_output_tokens)
        if self._logprobs is not None:
            request = replace(
                request,
                num_candidates=max(request.num_candidates, self._logprobs),
                wants_unit_log_sum_exp=request.temperature != 1.0,
            )
        # A candidate takes twice the bytes of a logit, and a stage makes room for full rows.
        num_pairs = request.num_candidates + request.num_contenders
        if 2 * num_pairs + len(request.token_ids) > self._vocab_size:
            return replace(request, num_candidates=self._vocab_size, num_contenders=0, token_ids=())
        return request

    def sample(self, row: LogitsRow) -> int:
        """Returns the next token, given the row that `logits_request` asked for.

        Raises:
            InternalError: The model produced NaN or infinite logits; ends this request only.
            StagecoachError: The constraint is broken; likewise.
        """
        if not math.isfinite(row.log_sum_exp):
            raise InternalError("model produced NaN or infinite logits")
        if self._constraint is not None:
            allowed_ids = self._constraint.allowed_ids
            if len(allowed_ids) == 0:
                raise self._constraint.error
            if len(allowed_ids) == 1:
                return int(allowed_ids[0])
            ranking = self._rank_allowed(row, allowed_ids)
        elif self._is_greedy and self._changed is None and row.full is None:
            return int(row.candidate_ids[0])
        elif self._takes_contenders and row.full is None:
            ranking = Ranking.of_contenders(row, self._changed)
        else:
            ranking = Ranking(row, self._changed)
        if self._is_greedy:
            return int(ranking.top(1).ids[0])
        return draw(
            ranking,
            self._truncations,
            self._need,
            temperature=self._temperature,
            total=self._total(row, ranking) if self._truncations else math.nan,
            key=self._noise_key(self._num_output_tokens),
        )

    def logprobs(self, row: LogitsRow, token_id: int) -> TokenLogprobs | None:
        """Returns the log-probabilities of the token that `sample` chose from the same row.

        Returns:
            None when the request asked for none.

        Raises:
            InternalError: The row lacks what `logits_request` asked for.
        """
        if self._logprobs is None:
            return None
        wanted = self.logits_request(row.row)
        return token_logprobs(row, token_id, num_top=self._logprobs, wanted=wanted)

    @property
    def is_ready(self) -> bool:
        """True when it is known which tokens may follow; until then there is nothing to ask for."""
        return self._constraint is None or self._constraint.is_ready

    def when_ready(self, on_ready: Callable[[], None]) -> None:
        """Calls back each time that it has become ready again, until it is closed."""
        if self._constraint is not None:
            self._constraint.when_ready(on_ready)

    def close(self) -> None:
        """Gives up the constraint. May be called again."""
        if self._constraint is not None:
            self._constraint.close()

    @property
    def is_complete(self) -> bool:
        """True when the constraint lets nothing follow."""
        return self._constraint is not None and self._constraint.is_complete

    def append(self, token_id: int) -> None:
        """Counts a token of output, sampled or replayed."""
        self._num_output_tokens += 1
        if self._constraint is not None:
            self._constraint.append(token_id)
        if self._changed is not None:
            self._changed.append(token_id)
            if self._num_output_tokens == self._min_tokens:
                self._changed = self._changed.unbar()

    @property
    def _is_greedy(self) -> bool:
        return self._temperature == 0.0

    @property
    def _takes_contenders(self) -> bool:
        """True when every token may be drawn."""
        return not self._is_greedy and self._constraint is None and not self._truncations

    def _request_for_choice(
        self, row: int, named: tuple[int, ...] | None, num_output_tokens: int
    ) -> LogitsRequest:
        """What choosing the token takes, without its log-probability."""
        if self._constraint is not None:
            return self._allowed_request(row, self._constraint)
        num_changed = 0 if named is None else len(named)
        if self._takes_contenders and num_changed <= self._max_candidates:
            return LogitsRequest(
                row=row,
                num_candidates=1,
                temperature=self._temperature,
                token_ids=named or (),
                num_contenders=_NUM_CONTENDERS + num_changed,
                noise_key=self._noise_key(num_output_tokens),
            )
        need = self._need
        if need.num_candidates is not None:
            num_candidates = need.num_candidates + num_changed
            if num_candidates <= self._max_candidates:
                return LogitsRequest(row=row, num_candidates=num_candidates, token_ids=named or ())
        elif named is None and not need.full_row:
            return LogitsRequest(
                row=row,
                num_candidates=HEAD_SIZE,
                min_mass=need.min_mass,
                min_gap=need.min_gap,
                temperature=self._temperature,
            )
        return LogitsRequest(row=row, num_candidates=self._vocab_size)

    def _allowed_request(self, row: int, constraint: Constraint) -> LogitsRequest:
        allowed_ids = constraint.allowed_ids
        if len(allowed_ids) <= self._max_candidates:
            return LogitsRequest(row=row, num_candidates=1, token_ids=tuple(allowed_ids.tolist()))
        num_others = self._vocab_size - len(allowed_ids)
        is_plain = self._changed is None and self._logprobs is None and not self._truncations
        if not is_plain or num_others > self._max_candidates:
            return LogitsRequest(row=row, num_candidates=self._vocab_size)
        if self._is_greedy:
            return LogitsRequest(row=row, num_candidates=1 + num_others)
        return LogitsRequest(
            row=row,
            num_candidates=1,
            temperature=self._temperature,
            num_contenders=_NUM_CONTENDERS + num_others,
            noise_key=self._noise_key(self._num_output_tokens),
        )

    def _rank_allowed(self, row: LogitsRow, allowed_ids: npt.NDArray[np.int64]) -> Ranking:
        if self._changed is not None and self._changed.bars_all(allowed_ids):
            self._changed = self._changed.unbar()
        if row.full is None and len(allowed_ids) > self._max_candidates:
            ranking = Ranking.of_allowed_best(
                row, allowed_ids=allowed_ids, are_contenders=not self._is_greedy
            )
        else:
            ranking = Ranking.of_allowed(
                row, self._changed, allowed_ids=allowed_ids, vocab_size=self._vocab_size
            )
        if not math.isfinite(ranking.top(1).logits[0]):
            raise InternalError("model produced no finite logit of a token that is allowed")
        return ranking

    def _total(self, row: LogitsRow, ranking: Ranking) -> float:
        """Weight of the whole row, as `draw` takes it."""
        is_changed = self._changed is not None or self._constraint is not None
        if not is_changed or ranking.full is None:
            return math.exp(row.log_sum_exp)
        return float(weigh(ranking.full, ranking.full.max(), self._temperature).sum())

    def _noise_key(self, num_output_tokens: int) -> int:
        assert self._params.seed is not None, "a request that is not greedy has a seed"
        return noise_key(self._params.seed, num_output_tokens)
