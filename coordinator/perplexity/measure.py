"""Asks a coordinator how likely each token of a text is."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from coordinator.perplexity.result import Perplexity
from coordinator.perplexity.text_tokens import text_tokens
from coordinator.perplexity.windows import Window, WindowPlan
from stagecoach.client import AsyncClient
from stagecoach.contract.errors import InvalidArgumentError

DEFAULT_CONTEXT = 2048
"""Tokens that a model sees at once, unless it takes fewer."""

_STATUS_TIMEOUT_S = 10.0
_NUM_REPORTS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class PerplexityPlan:
    """What is measured, and how."""

    model: str | None = None
    """A name of the model. None: the only one."""
    context: int | None
    """See `WindowPlan`; None: 2048, or what the model takes."""
    stride: int | None
    """See `WindowPlan`; None: half of the context."""
    limit: int | None
    """Tokens of the text after which it ends; None: all of it is read."""
    concurrency: int
    """Windows that are asked for at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What came of a plan."""

    model_id: str
    windows: WindowPlan
    perplexity: Perplexity


async def measure(
    connect: Callable[[], AsyncClient],
    text: str,
    plan: PerplexityPlan,
    report: Callable[[str], None],
) -> Measured:
    """Measures the perplexity of a text.

    Args:
        connect: Makes a client of the coordinator.
        text: At least one character.
        plan: How.
        report: Told in a line how far it is.

    Raises:
        InvalidArgumentError: The plan does not fit the model, or the text has too few tokens.
        StagecoachError: The coordinator is not ready, or a request failed.
    """
    async with connect() as client:
        status = (await client.status(timeout_s=_STATUS_TIMEOUT_S)).of_model(plan.model)
        context = plan.context or min(DEFAULT_CONTEXT, status.max_model_len)
        if context > status.max_model_len:
            raise InvalidArgumentError(
                f"context is {context}, the cluster takes {status.max_model_len} tokens",
                field="context",
            )
        text_ids = await text_tokens(
            client,
            text,
            model=plan.model,
            max_model_len=status.max_model_len,
            num_wanted=plan.limit,
        )
        num_begin_tokens = len(text_ids.begin_ids)
        windows = WindowPlan(
            context=context,
            stride=plan.stride or max(1, (context - num_begin_tokens) // 2),
            num_begin_tokens=num_begin_tokens,
        )
        token_ids = text_ids.token_ids[: plan.limit]
        todo = list(windows.windows(len(token_ids)))
        if not todo:
            raise InvalidArgumentError(
                f"the text has {len(token_ids)} tokens, must have at least 2", field="text"
            )
        scoring = _Scoring(client, plan.model, text_ids.begin_ids, token_ids, report)
        await scoring.run(todo, plan.concurrency)
    return Measured(
        model_id=status.model_id,
        windows=windows,
        perplexity=Perplexity.of(
            scoring.logprobs,
            tokens_per_byte=len(text_ids.token_ids) / text_ids.num_bytes,
        ),
    )


class _Scoring:
    """Asks for windows, some at a time.

    Args:
        client: The coordinator's.
        model: A name of the model. None: the only one.
        begin_ids: What stands before every window.
        token_ids: The text.
        report: Told how far it is.
    """

    def __init__(
        self,
        client: AsyncClient,
        model: str | None,
        begin_ids: Sequence[int],
        token_ids: Sequence[int],
        report: Callable[[str], None],
    ) -> None:
        self._client = client
        self._model = model
        self._begin_ids = list(begin_ids)
        self._token_ids = token_ids
        self._report = report
        self.logprobs: list[float] = []
        """Log-probabilities of all tokens that were counted, in any order."""

    async def run(self, windows: Sequence[Window], concurrency: int) -> None:
        """Asks for all windows; the first failure ends it."""
        rest = iter(windows)
        num_done = 0

        async def work(rest: Iterator[Window]) -> None:
            nonlocal num_done
            for window in rest:
                self.logprobs += await self._score(window)
                num_done += 1
                if num_done * _NUM_REPORTS // len(windows) > (num_done - 1) * _NUM_REPORTS // len(
                    windows
                ):
                    so_far = Perplexity.of(self.logprobs, tokens_per_byte=0.0)
                    self._report(
                        f"{so_far.num_tokens} of {len(self._token_ids)} tokens:"
                        f" perplexity {so_far.perplexity:.4f}"
                    )

        workers = [asyncio.create_task(work(rest)) for _ in range(min(concurrency, len(windows)))]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)

    async def _score(self, window: Window) -> list[float]:
        """Log-probabilities of the tokens that a window counts."""
        done = await self._client.complete(
            [*self._begin_ids, *self._token_ids[window.start : window.end]],
            model=self._model,
            max_tokens=0,
            prompt_logprobs=0,
        )
        first = len(self._begin_ids) + window.first_counted - window.start
        return [one.logprob for one in done.prompt_logprobs[first:] if one is not None]
