"""Answers that are not streamed, made at one go: the slow twin of those in pieces."""

from collections.abc import Sequence
from itertools import chain

from coordinator.doors.http.answer import ChoiceOutput, SpellToken, finish_reason
from coordinator.doors.http.chat_answer import ChatAnswer
from coordinator.doors.http.completion_answer import CompletionAnswer
from coordinator.doors.http.schema.chat import ChatCompletion
from coordinator.doors.http.schema.completion import Completion, CompletionChoice
from coordinator.doors.http.schema.sampling import (
    PromptLogprobsList,
    PromptTokenLogprob,
    Usage,
)


def whole(
    answer: ChatAnswer | CompletionAnswer, outputs: Sequence[ChoiceOutput], usage: Usage
) -> ChatCompletion | Completion:
    """The answer with everything in it."""
    if isinstance(answer, CompletionAnswer):
        choices = [_choice(answer, index, output) for index, output in enumerate(outputs)]
        return answer._completion(choices, usage)
    chat = answer._frame(usage)
    chat.choices = [answer._choice(index, output) for index, output in enumerate(outputs)]
    num_top = answer._head.prompt.num_listed_top
    if num_top is not None:
        chat.prompt_logprobs = _prompt_list(
            answer._prompt_token_ids, outputs[0], num_top, answer._head.spell
        )
    return chat


def _choice(answer: CompletionAnswer, index: int, output: ChoiceOutput) -> CompletionChoice:
    choice = answer._choice(
        index,
        answer._echo(index).text + output.text,
        output.token_ids,
        list(answer._told(index, output)) if answer._head.with_logprobs else (),
        reason=finish_reason(output.end),
    )
    num_top = answer._head.prompt.num_listed_top
    if num_top is not None:
        choice.prompt_logprobs = _prompt_list(
            answer._prompts[index].token_ids, output, num_top, answer._head.spell
        )
    return choice


def _prompt_list(
    token_ids: Sequence[int], output: ChoiceOutput, num_top: int, spell: SpellToken
) -> PromptLogprobsList:
    """Null for the first token, and for each other one its own entry and the likeliest ones."""

    def entry(token_id: int, logprob: float, rank: int) -> dict[str, PromptTokenLogprob]:
        text = spell(token_id).decode(errors="replace")
        one = PromptTokenLogprob(logprob=logprob, rank=rank, decoded_token=text)
        return {str(token_id): one}

    found: PromptLogprobsList = [None]
    rows = chain.from_iterable(output.prompt_logprobs)
    for token_id, row in zip(token_ids[1:], rows, strict=True):
        entries = entry(token_id, row.logprob, row.rank)
        for rank, (top, logprob) in enumerate(row.top[:num_top], 1):
            entries |= entry(top, logprob, rank)
        found.append(entries)
    return found
