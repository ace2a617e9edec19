"""Writes what `/v1/completions` answers."""

from collections.abc import Sequence

from coordinator.core.events import Finished, TokensEvent
from coordinator.http.answer import AnswerHead, ChoiceOutput, finish_reason
from coordinator.http.schema.completion import Completion, CompletionChoice, CompletionLogprobs
from coordinator.http.schema.sampling import FinishReasonText, Usage
from coordinator.http.text_places import PlacedToken, TextPlaces


class CompletionAnswer:
    """An `Answer`.

    Args:
        head: What every object repeats.
    """

    def __init__(self, head: AnswerHead) -> None:
        """Keeps what is repeated."""
        self._head = head
        self._places: dict[int, TextPlaces] = {}
        """By the index of a choice; of those whose log-probabilities were asked for."""

    def opening(self, _index: int) -> None:
        """See `Answer.opening`: there is none."""
        return

    def tokens(self, index: int, event: TokensEvent) -> Completion | None:
        """See `Answer.tokens`; a token comes when its place in the text is certain."""
        token_ids: Sequence[int] = event.token_ids
        placed: list[PlacedToken] = []
        if self._head.with_logprobs:
            placed = self._places_of(index).push(event)
            token_ids = [token.token_id for token in placed]
        if not (event.text or placed or (self._head.with_token_ids and token_ids)):
            return None
        return self._chunk(self._choice(index, event.text, token_ids, placed, reason=None))

    def ending(self, index: int, end: Finished) -> Completion:
        """See `Answer.ending`."""
        placed = self._places_of(index).finish(end.text) if self._head.with_logprobs else []
        token_ids = [token.token_id for token in placed]
        return self._chunk(
            self._choice(index, end.text, token_ids, placed, reason=finish_reason(end))
        )

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
                self._all_placed(output),
                reason=finish_reason(output.end),
            )
            for index, output in enumerate(outputs)
        ]
        return self._completion(choices, usage)

    def _places_of(self, index: int) -> TextPlaces:
        return self._places.setdefault(index, TextPlaces(self._head.spell))

    def _all_placed(self, output: ChoiceOutput) -> list[PlacedToken]:
        if not self._head.with_logprobs or output.tokens is None:
            return []
        places = TextPlaces(self._head.spell)
        return [*places.push(output.tokens), *places.finish(output.end.text)]

    def _choice(
        self,
        index: int,
        text: str,
        token_ids: Sequence[int],
        placed: Sequence[PlacedToken],
        *,
        reason: FinishReasonText | None,
    ) -> CompletionChoice:
        choice = CompletionChoice(
            index=index,
            text=text,
            logprobs=self._logprobs(placed) if self._head.with_logprobs else None,
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

    def _logprobs(self, placed: Sequence[PlacedToken]) -> CompletionLogprobs:
        tokens = [self._spelling(token.token_id) for token in placed]
        return CompletionLogprobs(
            tokens=tokens,
            token_logprobs=[token.logprobs.logprob for token in placed],
            top_logprobs=[
                {self._spelling(top): value for top, value in token.logprobs.top}
                | {spelling: token.logprobs.logprob}
                for spelling, token in zip(tokens, placed, strict=True)
            ],
            text_offset=[token.start for token in placed],
        )

    def _spelling(self, token_id: int) -> str:
        """The text of a token; of one that is a part of a character, its bytes as OpenAI writes."""
        spelling = self._head.spell(token_id)
        try:
            return spelling.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelling)
