"""Writes what `/v1/completions` answers."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from coordinator.core.events import Finished, TokenLogprobs, TokensEvent
from coordinator.core.prompt_logprobs import PromptLogprob, PromptLogprobs
from coordinator.doors.http.answer import TOKENS_PER_PIECE, AnswerHead, ChoiceOutput, finish_reason
from coordinator.doors.http.choices import TakenPrompt
from coordinator.doors.http.echoed_prompt import EchoedPrompt, echoed_prompt
from coordinator.doors.http.pieces import chain_listed, listed, number, spliced
from coordinator.doors.http.prompt_lists import prompt_list_pieces
from coordinator.doors.http.schema.completion import (
    Completion,
    CompletionChoice,
    CompletionLogprobs,
)
from coordinator.doors.http.schema.sampling import FinishReasonText, Usage
from coordinator.doors.http.text_places import PlacedToken, TextPlaces

_NO_PROMPT = EchoedPrompt("", (), ())
"""What is returned of a prompt that is not echoed."""


class _ToldToken(NamedTuple):
    """What is told of one token of a text."""

    token_id: int
    logprobs: TokenLogprobs | PromptLogprob | None
    """None for the first token of a prompt."""
    start: int
    """Characters of the text before it."""


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
        self._prompts: list[TakenPrompt] = []
        self._echoes: list[EchoedPrompt] = []
        """Prompts of the choices, and what is returned of them."""
        self._num_echoed: dict[int, int] = {}
        """Tokens of the prompt of a choice that a stream has brought."""

    async def read_prompts(self, prompts: Sequence[TakenPrompt], num_choices: int) -> None:
        """See `Answer.read_prompts`."""
        for one in prompts:
            echo = _NO_PROMPT
            if self._head.prompt.is_echoed:
                echo = await echoed_prompt(
                    one.prompt,
                    one.token_ids,
                    self._head.spell,
                    with_starts=self._head.with_logprobs,
                )
            self._prompts += num_choices * [one]
            self._echoes += num_choices * [echo]

    def opening(self, _index: int) -> None:
        """See `Answer.opening`: there is none."""
        return

    def of_prompt(self, index: int, logprobs: PromptLogprobs | None) -> Iterator[Completion]:
        """See `Answer.of_prompt`; only what is echoed comes."""
        if not self._head.prompt.is_echoed:
            return
        echo, num_tokens = self._echoes[index], len(self._echoes[index].token_ids)
        if logprobs is None:
            if self._num_echoed.get(index, 0) < num_tokens:  # there are none, or it is one token
                told = self._told_of_prompt(index, ()) if self._head.with_logprobs else ()
                yield self._chunk(self._choice(index, echo.text, (), list(told), reason=None))
            return
        for part in logprobs.pieces(TOKENS_PER_PIECE):
            start, end = self._num_echoed.get(index, 0), part.start + len(part)
            told = islice(self._told_of_prompt(index, [part]), 0 if start == 0 else 1, None)
            text = echo.text_of(start, end)
            self._num_echoed[index] = end
            yield self._chunk(self._choice(index, text, (), list(told), reason=None))

    def tokens(self, index: int, event: TokensEvent) -> Completion | None:
        """See `Answer.tokens`; a token comes when its place in the text is certain."""
        token_ids: Sequence[int] = event.token_ids
        placed: list[PlacedToken] = []
        if self._head.with_logprobs:
            placed = self._places_of(index).push(event)
            token_ids = [token.token_id for token in placed]
        if not (event.text or placed or (self._head.with_token_ids and token_ids)):
            return None
        told = list(self._told_placed(index, placed))
        return self._chunk(self._choice(index, event.text, token_ids, told, reason=None))

    def ending(self, index: int, end: Finished) -> Completion:
        """See `Answer.ending`."""
        placed: list[PlacedToken] = []
        told: list[_ToldToken] = []
        if self._head.with_logprobs:
            places = self._places_of(index)
            placed = places.finish(end.text)
            told = [
                *self._told_placed(index, placed),
                *self._told_end(index, end, places.num_chars),
            ]
        token_ids = [token.token_id for token in placed]
        choice = self._choice(index, end.text, token_ids, told, reason=finish_reason(end))
        return self._chunk(choice)

    def usage(self, usage: Usage) -> Completion:
        """See `Answer.usage`."""
        return self._completion([], usage)

    def pieces(self, outputs: Sequence[ChoiceOutput], usage: Usage) -> Iterator[str]:
        """See `Answer.pieces`."""
        answer = self._completion([], usage).model_dump_json(exclude_unset=True)
        choices = (self._choice_pieces(index, output) for index, output in enumerate(outputs))
        return spliced(answer, [("choices", chain_listed(choices))])

    def _choice_pieces(self, index: int, output: ChoiceOutput) -> Iterator[str]:
        text = self._echo(index).text + output.text
        choice = self._choice(index, text, (), (), reason=finish_reason(output.end))
        lists: list[tuple[str, Iterator[str]]] = []
        if self._head.with_logprobs:
            lists += self._logprob_lists(index, output)
        if self._head.with_token_ids:
            lists.append(("token_ids", listed(output.token_ids, list, num_items=4096)))
        num_listed_top = self._head.prompt.num_listed_top
        if num_listed_top is not None:
            choice.prompt_logprobs = []
            of_prompt = prompt_list_pieces(
                self._prompts[index].token_ids,
                output.prompt_logprobs,
                num_listed_top,
                self._head.spell,
            )
            lists.append(("prompt_logprobs", of_prompt))
        return spliced(choice.model_dump_json(exclude_unset=True), lists)

    def _logprob_lists(self, index: int, output: ChoiceOutput) -> list[tuple[str, Iterator[str]]]:
        """The lists of `CompletionLogprobs`."""

        def written(write: Callable[[_ToldToken], object], num_items: int) -> Iterator[str]:
            told = self._told(index, output)
            return listed(told, lambda part: list(map(write, part)), num_items=num_items)

        return [
            ("tokens", written(lambda token: self._spelling(token.token_id), 256)),
            ("token_logprobs", written(_own_logprob, 256)),
            ("top_logprobs", written(self._top_logprobs, TOKENS_PER_PIECE)),
            ("text_offset", written(lambda token: token.start, 256)),
        ]

    def _told(self, index: int, output: ChoiceOutput) -> Iterator[_ToldToken]:
        """What is told of all tokens of a choice, made as it is taken."""
        if self._head.prompt.is_echoed:
            yield from self._told_of_prompt(index, output.prompt_logprobs)
        yield from self._told_placed(index, self._all_placed(output))
        yield from self._told_end(index, output.end, len(output.text))

    def _told_of_prompt(self, index: int, pieces: Sequence[PromptLogprobs]) -> Iterator[_ToldToken]:
        """The first token of a prompt, and those of some pieces."""
        token_ids, starts = self._echoes[index].token_ids, self._echoes[index].starts
        yield _ToldToken(token_ids[0], None, starts[0])
        for piece in pieces:
            for place, one in enumerate(piece, piece.start):
                yield _ToldToken(token_ids[place], one, starts[place])

    def _told_placed(self, index: int, placed: Iterable[PlacedToken]) -> Iterator[_ToldToken]:
        num_chars = len(self._echo(index).text)
        for token in placed:
            yield _ToldToken(token.token_id, token.logprobs, num_chars + token.start)

    def _told_end(self, index: int, end: Finished, num_chars: int) -> Iterator[_ToldToken]:
        """The end token, of which only an echo tells; it stands behind so many characters.

        Clients that score a prompt ask for one token, and take off one from the end.
        """
        if self._head.prompt.is_echoed and end.end_token is not None:
            token_id, logprobs = end.end_token
            yield _ToldToken(token_id, logprobs, len(self._echo(index).text) + num_chars)

    def _echo(self, index: int) -> EchoedPrompt:
        return self._echoes[index] if self._head.prompt.is_echoed else _NO_PROMPT

    def _all_placed(self, output: ChoiceOutput) -> Iterator[PlacedToken]:
        """All tokens of the output; all text is there, and no token waits for more than it."""
        tokens, places = output.tokens, TextPlaces(self._head.spell)
        for start in range(0, 0 if tokens is None else len(tokens.token_ids), 256):
            assert tokens is not None, "there are tokens"
            part = slice(start, start + 256)
            event = TokensEvent(
                token_ids=tokens.token_ids[part],
                text="" if start else tokens.text,
                logprobs=tokens.logprobs[part],
                text_ends=tokens.text_ends[part],
            )
            yield from places.push(event)
        yield from places.finish(output.end.text)

    def _places_of(self, index: int) -> TextPlaces:
        return self._places.setdefault(index, TextPlaces(self._head.spell))

    def _choice(
        self,
        index: int,
        text: str,
        token_ids: Sequence[int],
        told: Sequence[_ToldToken],
        *,
        reason: FinishReasonText | None,
    ) -> CompletionChoice:
        choice = CompletionChoice(
            index=index,
            text=text,
            logprobs=self._logprobs(told) if self._head.with_logprobs else None,
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

    def _logprobs(self, told: Sequence[_ToldToken]) -> CompletionLogprobs:
        return CompletionLogprobs(
            tokens=[self._spelling(token.token_id) for token in told],
            token_logprobs=[_own_logprob(token) for token in told],
            top_logprobs=[self._top_logprobs(token) for token in told],
            text_offset=[token.start for token in told],
        )

    def _top_logprobs(self, token: _ToldToken) -> dict[str, float | None] | None:
        """The likeliest tokens and the token itself by their text; of one text, the likeliest."""
        one = token.logprobs
        if one is None:
            return None
        top: Sequence[tuple[int, float]] = one.top
        if isinstance(one, PromptLogprob):  # of which there may be more, for another list
            top = top[: self._head.prompt.num_echoed_top]
        found: dict[str, float] = {}
        for token_id, logprob in (*top, (token.token_id, one.logprob)):
            spelling = self._spelling(token_id)
            found[spelling] = max(logprob, found.get(spelling, -math.inf))
        return {spelling: number(logprob) for spelling, logprob in found.items()}

    def _spelling(self, token_id: int) -> str:
        """The text of a token; of one that is a part of a character, its bytes as OpenAI writes."""
        spelling = self._head.spell(token_id)
        try:
            return spelling.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelling)


def _own_logprob(token: _ToldToken) -> float | None:
    return None if token.logprobs is None else number(token.logprobs.logprob)
