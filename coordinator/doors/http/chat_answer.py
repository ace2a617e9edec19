"""Writes what `/v1/chat/completions` answers."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

from coordinator.core.events import Finished, TokenLogprobs, TokensEvent
from coordinator.core.prompt_logprobs import PromptLogprobs
from coordinator.doors.http.answer import TOKENS_PER_PIECE, AnswerHead, ChoiceOutput, finish_reason
from coordinator.doors.http.choices import TakenPrompt
from coordinator.doors.http.divided_message import delta_of, message_of
from coordinator.doors.http.pieces import chain_listed, listed, spliced
from coordinator.doors.http.prompt_lists import prompt_list_pieces
from coordinator.doors.http.schema.chat import (
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatDelta,
    ChoiceLogprobs,
)
from coordinator.doors.http.schema.sampling import FinishReasonText, Usage
from coordinator.doors.http.token_logprobs import token_logprobs, written_logprobs


class ChatAnswer:
    """An `Answer`.

    Args:
        head: What every object repeats.
        metadata: Labels that came with the request.
    """

    def __init__(self, head: AnswerHead, metadata: Mapping[str, str] | None) -> None:
        self._head = head
        self._metadata = metadata
        self._prompt_token_ids: Sequence[int] = ()

    async def read_prompts(self, prompts: Sequence[TakenPrompt], _num_choices: int) -> None:
        """See `Answer.read_prompts`: there is one conversation."""
        self._prompt_token_ids = prompts[0].token_ids

    def opening(self, index: int) -> ChatCompletionChunk:
        """See `Answer.opening`: who speaks."""
        return self._chunk(index, ChatDelta(role="assistant", content=""))

    def of_prompt(
        self, _index: int, _logprobs: PromptLogprobs | None
    ) -> Iterator[ChatCompletionChunk]:
        """See `Answer.of_prompt`: nothing of it is streamed."""
        return iter(())

    def tokens(self, index: int, event: TokensEvent) -> ChatCompletionChunk | None:
        """See `Answer.tokens`."""
        delta = delta_of(event.text, event.parts)
        is_empty = not (delta.content or delta.reasoning_content or delta.tool_calls)
        if is_empty and not (event.logprobs or self._head.with_token_ids):
            return None
        return self._chunk(
            index,
            delta,
            logprobs=self._logprobs(event.token_ids, event.logprobs),
            token_ids=event.token_ids,
        )

    def ending(self, index: int, end: Finished) -> ChatCompletionChunk:
        """See `Answer.ending`."""
        delta = delta_of(end.text, end.parts) if end.text or end.parts else ChatDelta()
        return self._chunk(index, delta, reason=finish_reason(end))

    def usage(self, usage: Usage) -> ChatCompletionChunk:
        """See `Answer.usage`."""
        return ChatCompletionChunk(
            id=self._head.id,
            object="chat.completion.chunk",
            created=self._head.created_s,
            model=self._head.model,
            choices=[],
            usage=usage,
        )

    def pieces(self, outputs: Sequence[ChoiceOutput], usage: Usage) -> Iterator[str]:
        """See `Answer.pieces`."""
        answer = self._frame(usage)
        choices = (self._choice_pieces(index, output) for index, output in enumerate(outputs))
        lists: list[tuple[str, Iterator[str]]] = [("choices", chain_listed(choices))]
        num_listed_top = self._head.prompt.num_listed_top
        if num_listed_top is not None:
            answer.prompt_logprobs = []
            of_prompt = prompt_list_pieces(
                self._prompt_token_ids,
                outputs[0].prompt_logprobs,
                num_listed_top,
                self._head.spell,
            )
            lists.append(("prompt_logprobs", of_prompt))
        return spliced(answer.model_dump_json(exclude_unset=True), lists)

    def _frame(self, usage: Usage) -> ChatCompletion:
        """The answer that is not streamed, without its choices."""
        answer = ChatCompletion(
            id=self._head.id,
            object="chat.completion",
            created=self._head.created_s,
            model=self._head.model,
            choices=[],
            usage=usage,
        )
        if self._metadata is not None:
            answer.metadata = dict(self._metadata)
        return answer

    def _choice_pieces(self, index: int, output: ChoiceOutput) -> Iterator[str]:
        choice = self._choice(index, replace(output, tokens=None))
        lists: list[tuple[str, Iterator[str]]] = []
        if self._head.with_logprobs:
            pairs = list(zip(output.token_ids, output.logprobs, strict=True))
            write = partial(written_logprobs, spell=self._head.spell)
            lists.append(("content", listed(pairs, write, num_items=TOKENS_PER_PIECE)))
        if self._head.with_token_ids:
            lists.append(("token_ids", listed(output.token_ids, list, num_items=4096)))
        return spliced(choice.model_dump_json(exclude_unset=True), lists)

    def _choice(self, index: int, output: ChoiceOutput) -> ChatChoice:
        choice = ChatChoice(
            index=index,
            message=message_of(output.text, output.parts),
            logprobs=self._logprobs(output.token_ids, output.logprobs),
            finish_reason=finish_reason(output.end),
        )
        if self._head.with_token_ids:
            choice.token_ids = list(output.token_ids)
        return choice

    def _chunk(
        self,
        index: int,
        delta: ChatDelta,
        *,
        logprobs: ChoiceLogprobs | None = None,
        reason: FinishReasonText | None = None,
        token_ids: Sequence[int] = (),
    ) -> ChatCompletionChunk:
        choice = ChatChunkChoice(
            index=index,
            delta=delta,
            logprobs=self._logprobs((), ()) if logprobs is None else logprobs,
            finish_reason=reason,
        )
        if self._head.with_token_ids:
            choice.token_ids = list(token_ids)
        chunk = ChatCompletionChunk(
            id=self._head.id,
            object="chat.completion.chunk",
            created=self._head.created_s,
            model=self._head.model,
            choices=[choice],
        )
        if self._head.with_usage:
            chunk.usage = None  # set, so that it is written: `usage` stands in every chunk
        return chunk

    def _logprobs(
        self, token_ids: Sequence[int], logprobs: Sequence[TokenLogprobs]
    ) -> ChoiceLogprobs | None:
        """The log-probabilities of tokens; None when none were asked for."""
        if not self._head.with_logprobs:
            return None
        pairs = zip(token_ids, logprobs, strict=True)
        return ChoiceLogprobs(content=token_logprobs(pairs, self._head.spell), refusal=None)
