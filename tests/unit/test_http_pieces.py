"""An answer in pieces is the answer at one go."""

import json
from collections.abc import Sequence

import pytest

from coordinator.core.events import Finished, TokenLogprobs, TokensEvent
from coordinator.core.prompt_logprobs import PromptLogprobs
from coordinator.core.request import FinishReason
from coordinator.core.request_spec import TokenPrompt
from coordinator.doors.http.answer import AnswerHead, ChoiceOutput, PromptForm, usage_of
from coordinator.doors.http.chat_answer import ChatAnswer
from coordinator.doors.http.choices import TakenPrompt
from coordinator.doors.http.completion_answer import CompletionAnswer
from coordinator.doors.http.pieces import spliced
from tests.ended_requests import NO_TIME
from tests.whole_answers import whole

TRAP = '"choices":[] "content":[] "tokens":[] "text_offset":[] \\ "'


PROMPT_IDS = tuple(f"{TRAP} \N{GRINNING FACE}".encode())


def spell(token_id: int) -> bytes:
    return bytes([token_id])


def create_output(text: bytes, *, with_logprobs: bool, held: int = 0) -> ChoiceOutput:
    """One token a byte; the last characters come with the end."""
    whole = text.decode(errors="replace")
    tokens = TokensEvent(
        token_ids=tuple(text),
        text=whole[: len(whole) - held],
        logprobs=tuple(
            TokenLogprobs(-i / 7, [((i + j) % 256, -j / 3) for j in range(i % 4)])
            for i in range(len(text))
        )
        if with_logprobs
        else (),
        text_ends=tuple(len(text[: i + 1].decode(errors="ignore")) for i in range(len(text)))
        if with_logprobs
        else (),
    )
    end = Finished(
        finish_reason=FinishReason.LENGTH,
        text=whole[len(whole) - held :],
        num_prompt_tokens=3,
        num_completion_tokens=len(text),
        num_cached_tokens=0,
        timings=NO_TIME,
        end_token=(65, TokenLogprobs(-2.0, [(66, -1.0)])) if with_logprobs else None,
    )
    return ChoiceOutput(
        text=whole,
        tokens=tokens if text else None,
        end=end,
        prompt_logprobs=list(of_prompt(len(PROMPT_IDS) - 1).pieces(7)),
    )


def of_prompt(num_tokens: int) -> PromptLogprobs:
    """Three likely tokens at each place, which spell alike now and then."""
    return PromptLogprobs(
        start=1,
        logprobs=[-i / 9 for i in range(num_tokens)],
        ranks=range(1, num_tokens + 1),
        num_top=3,
        top_token_ids=[(5 * i) % 256 for i in range(3 * num_tokens)],
        top_logprobs=[-i / 3 for i in range(3 * num_tokens)],
    )


NO_PROMPT = PromptForm()
ECHO = PromptForm(is_echoed=True, num_echoed_top=2)
LIST = PromptForm(num_listed_top=1)
BOTH = PromptForm(is_echoed=True, num_echoed_top=1, num_listed_top=3)


@pytest.mark.parametrize("prompt", [NO_PROMPT, ECHO, LIST, BOTH])
@pytest.mark.parametrize("with_token_ids", [True, False])
@pytest.mark.parametrize("with_logprobs", [True, False])
@pytest.mark.parametrize("kind", ["chat", "completion"])
async def test_an_answer_in_pieces_is_the_whole_one(
    kind: str, with_logprobs: bool, with_token_ids: bool, prompt: PromptForm
) -> None:
    head = AnswerHead(
        id=TRAP,
        created_s=7,
        model=TRAP,
        with_token_ids=with_token_ids,
        with_logprobs=with_logprobs,
        with_usage=False,
        spell=spell,
        prompt=prompt,
    )
    answer = ChatAnswer(head, {"a": TRAP}) if kind == "chat" else CompletionAnswer(head)
    texts = [TRAP.encode(), "Dé\N{GRINNING FACE}jà".encode() * 200, b"", b"abc"]
    outputs = [create_output(one, with_logprobs=with_logprobs, held=len(one) % 3) for one in texts]
    usage = usage_of(3, [output.end for output in outputs], 1)
    taken = TakenPrompt(TokenPrompt(token_ids=PROMPT_IDS), PROMPT_IDS)
    await answer.read_prompts([taken], len(outputs))
    expected = json.loads(whole(answer, outputs, usage).model_dump_json(exclude_unset=True))
    assert json.loads("".join(answer.pieces(outputs, usage))) == expected


def test_no_piece_of_an_answer_is_long() -> None:
    head = AnswerHead(
        id="a",
        created_s=7,
        model="m",
        with_token_ids=False,
        with_logprobs=True,
        with_usage=False,
        spell=spell,
    )
    outputs = [create_output(b"x" * 2000, with_logprobs=True)] * 4
    usage = usage_of(3, [output.end for output in outputs], 1)
    answers: Sequence[ChatAnswer | CompletionAnswer] = (
        ChatAnswer(head, None),
        CompletionAnswer(head),
    )
    for answer in answers:
        assert max(map(len, answer.pieces(outputs, usage))) < 20_000


def test_what_is_not_a_number_of_json_is_null() -> None:
    head = AnswerHead(
        id="a",
        created_s=7,
        model="m",
        with_token_ids=False,
        with_logprobs=True,
        with_usage=False,
        spell=spell,
    )
    output = create_output(b"a", with_logprobs=True)
    assert output.tokens is not None
    event = TokensEvent(
        token_ids=(97,),
        text="a",
        logprobs=(TokenLogprobs(-1.0, [(97, -1.0), (98, float("-inf"))]),),
        text_ends=(1,),
    )
    infinite = ChoiceOutput(text="a", tokens=event, end=output.end)
    written = json.loads(
        "".join(ChatAnswer(head, None).pieces([infinite], usage_of(3, [output.end], 1)))
    )
    top = written["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    assert [one["logprob"] for one in top] == [-1.0, None]


def test_only_empty_lists_are_filled() -> None:
    text = json.dumps({"a": '"b":[]', "b": []}, separators=(",", ":"))
    assert json.loads("".join(spliced(text, [("b", ["1", ",2"])]))) == {"a": '"b":[]', "b": [1, 2]}
    with pytest.raises(AssertionError, match="no empty list"):
        list(spliced(text, [("c", [])]))
