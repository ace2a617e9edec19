"""Writes what `/v1/completions` answers."""

from collections.abc import Sequence

from coordinator.core.events import Finished, TokenLogprobs, TokensEvent
from coordinator.http.answer import AnswerHead, ChoiceOutput, finish_reason
from coordinator.http.schema.completion import Completion, CompletionChoice, CompletionLogprobs
from coordinator.http.schema.sampling import FinishReasonText, Usage


class CompletionAnswer:
    """An `Answer`.

    Args:
        head: What every object repeats.
    """

    def __init__(self, head: AnswerHead) -> None:
        """Keeps what is repeated."""
        self._head = head
        self._offsets: dict[int, int] = {}
        """Characters that the tokens of a choice have spelled so far, by its index."""

    def opening(self, _index: int) -> None:
        """See `Answer.opening`: there is none."""
        return

    def tokens(self, index: int, event: TokensEvent) -> Completion | None:
        """See `Answer.tokens`."""
        if not (event.text or event.logprobs or self._head.with_token_ids):
            return None
        return self._chunk(
            self._choice(index, event.text, event.token_ids, event.logprobs, reason=None)
        )

    def ending(self, index: int, end: Finished) -> Completion:
        """See `Answer.ending`."""
        return self._chunk(self._choice(index, end.text, (), (), reason=finish_reason(end)))

    def usage(self, usage: Usage) -> Completion:
        """See `Answer.usage`."""
        return self._completion([], usage)

    def whole(self, outputs: Sequence[ChoiceOutput], usage: Usage) -> Completion:
        """See `Answer.whole`."""
        choices = [
            self._choice(
                index,
                output.text,
                output.token_ids,
                output.logprobs,
                reason=finish_reason(output.end),
            )
            for index, output in enumerate(outputs)
        ]
        return self._completion(choices, usage)

    def _choice(
        self,
        index: int,
        text: str,
        token_ids: Sequence[int],
        logprobs: Sequence[TokenLogprobs],
        *,
        reason: FinishReasonText | None,
    ) -> CompletionChoice:
        choice = CompletionChoice(
            index=index,
            text=text,
            logprobs=self._logprobs(index, token_ids, logprobs),
            finish_reason=reason,
        )
        if self._head.with_token_ids:
            choice.token_ids = list(token_ids)
        return choice

    def _chunk(self, choice: CompletionChoice) -> Completion:
        chunk = self._completion([choice])
        if self._head.with_usage:
            chunk.usage = None  # set, so that it is written: `usage` stands in every chunk
        return chunk

    def _completion(
        self, choices: list[CompletionChoice], usage: Usage | None = None
    ) -> Completion:
        completion = Completion(
            id=self._head.id,
            object="text_completion",
            created=self._head.created_s,
            model=self._head.model,
            choices=choices,
        )
        if usage is not None:
            completion.usage = usage
        return completion

    def _logprobs(
        self, index: int, token_ids: Sequence[int], logprobs: Sequence[TokenLogprobs]
    ) -> CompletionLogprobs | None:
        if not logprobs:
            return None
        tokens = list(map(self._spelling, token_ids))
        offsets = []
        offset = self._offsets.get(index, 0)
        for token in tokens:
            offsets.append(offset)
            offset += len(token)
        self._offsets[index] = offset
        return CompletionLogprobs(
            tokens=tokens,
            token_logprobs=[one.logprob for one in logprobs],
            top_logprobs=[
                {self._spelling(top): value for top, value in one.top} | {token: one.logprob}
                for token, one in zip(tokens, logprobs, strict=True)
            ],
            text_offset=offsets,
        )

    def _spelling(self, token_id: int) -> str:
        """The text of a token; of one that is a part of a character, its bytes as OpenAI writes."""
        spelling = self._head.spell(token_id)
        try:
            return spelling.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelling)
