"""Writes what `/v1/completions` answers."""

from collections.abc import Iterator, Sequence

from coordinator.core.events import Finished, TokenLogprobs, TokensEvent
from coordinator.doors.http.answer import TOKENS_PER_PIECE, AnswerHead, ChoiceOutput, finish_reason
from coordinator.doors.http.pieces import chain_listed, listed, number, spliced
from coordinator.doors.http.schema.completion import (
    Completion,
    CompletionChoice,
    CompletionLogprobs,
)
from coordinator.doors.http.schema.sampling import FinishReasonText, Usage
from coordinator.doors.http.text_places import PlacedToken, TextPlaces


class CompletionAnswer:
    """An `Answer`.

    Args:
        head: What every object repeats.
    """

    def __init__(self, head: AnswerHead) -> None:
        self._head = head
        self._places: dict[int, TextPlaces] = {}
        """Places of tokens in the text, by the index of a choice whose log-probabilities were asked
        for."""

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

    def pieces(self, outputs: Sequence[ChoiceOutput], usage: Usage) -> Iterator[str]:
        """See `Answer.pieces`."""
        answer = self._completion([], usage).model_dump_json(exclude_unset=True)
        choices = (self._choice_pieces(index, output) for index, output in enumerate(outputs))
        return spliced(answer, [("choices", chain_listed(choices))])

    def _choice_pieces(self, index: int, output: ChoiceOutput) -> Iterator[str]:
        choice = self._choice(index, output.text, (), (), reason=finish_reason(output.end))
        lists: list[tuple[str, Iterator[str]]] = []
        if self._head.with_logprobs:
            lists += self._logprob_lists(output)
        if self._head.with_token_ids:
            lists.append(("token_ids", listed(output.token_ids, list, num_items=4096)))
        return spliced(choice.model_dump_json(exclude_unset=True), lists)

    def _logprob_lists(self, output: ChoiceOutput) -> list[tuple[str, Iterator[str]]]:
        """The lists of `CompletionLogprobs`."""
        pairs = list(zip(output.token_ids, output.logprobs, strict=True))

        def own(part: Sequence[TokenLogprobs]) -> list[object]:
            return [number(one.logprob) for one in part]

        def tops(part: Sequence[tuple[int, TokenLogprobs]]) -> list[object]:
            return [
                {self._spelling(top): number(value) for top, value in one.top}
                | {self._spelling(token_id): number(one.logprob)}
                for token_id, one in part
            ]

        return [
            (
                "tokens",
                listed(output.token_ids, lambda ids: list(map(self._spelling, ids)), num_items=256),
            ),
            (
                "token_logprobs",
                listed(
                    output.logprobs,
                    lambda part: [number(one.logprob) for one in part],
                    num_items=256,
                ),
            ),
            ("top_logprobs", listed(pairs, tops, num_items=TOKENS_PER_PIECE)),
            ("text_offset", self._offsets(output)),
        ]

    def _offsets(self, output: ChoiceOutput) -> Iterator[str]:
        """Where each token begins; all text is there, and no token waits for more than it."""
        tokens, places, separator = output.tokens, TextPlaces(self._head.spell), ""
        for start in range(0, 0 if tokens is None else len(tokens.token_ids), 256):
            assert tokens is not None, "there are tokens"
            part = slice(start, start + 256)
            event = TokensEvent(
                token_ids=tokens.token_ids[part],
                text="" if start else tokens.text,
                logprobs=tokens.logprobs[part],
                text_ends=tokens.text_ends[part],
            )
            for token in places.push(event):
                yield f"{separator}{token.start}"
                separator = ","
        for token in places.finish(output.end.text):
            yield f"{separator}{token.start}"
            separator = ","

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
