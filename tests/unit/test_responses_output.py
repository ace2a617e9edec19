"""The output of a response, item by item, and the events of each."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from coordinator.core.events import Finished, TokenLogprobs, TokensEvent
from coordinator.core.output_parts import (
    ArgumentsPart,
    CallBegins,
    CallEnds,
    ContentPart,
    OutputPart,
    ReasoningPart,
)
from coordinator.core.request import FinishReason
from coordinator.doors.http.responses_answer import event_pieces, finished, state_event
from coordinator.doors.http.responses_output import Output, Told
from coordinator.doors.http.responses_specs import response_frame
from coordinator.doors.http.responses_tools import FunctionOf
from coordinator.doors.http.schema.responses import ResponsesRequest
from tests.contract.echo_engine import TIMINGS
from tests.responses_events import check_events, read_events

ID = "resp_0"
FUNCTIONS = {"near.find": FunctionOf("find", "near"), "add": FunctionOf("add", None)}
CALL: tuple[OutputPart, ...] = (
    CallBegins(0, "call_1", "near.find"),
    ArgumentsPart(0, '{"a": '),
    ArgumentsPart(0, "1}"),
    CallEnds(0),
)
ALL: tuple[OutputPart, ...] = (
    ReasoningPart("I thi"),
    ReasoningPart("nk."),
    ContentPart("So "),
    ContentPart("be it."),
    *CALL,
    CallBegins(1, "call_2", "add"),
    ArgumentsPart(1, "{}"),
    CallEnds(1),
)


def end(reason: FinishReason = FinishReason.STOP, *parts: OutputPart, text: str = "") -> Finished:
    return Finished(
        finish_reason=reason,
        text=text,
        num_prompt_tokens=3,
        num_completion_tokens=7,
        num_cached_tokens=1,
        timings=TIMINGS,
        parts=parts,
        num_reasoning_tokens=2,
    )


def spell(token_id: int) -> bytes:
    return bytes([token_id])


def streamed(
    events: Sequence[TokensEvent], last: Finished, *, with_logprobs: bool = False
) -> list[dict[str, Any]]:
    """The events that tell of an output."""
    frame = response_frame(ResponsesRequest.model_validate({}), ID, created_s=1, model="m")
    output = Output(ID, FUNCTIONS, spell if with_logprobs else None)

    def told() -> Iterator[Told]:
        yield Told(state_event(frame, output.next_number(), is_created=True))
        yield Told(state_event(frame, output.next_number()))
        for event in events:
            yield from output.take(event)
        yield from output.end(last)
        response = finished(frame, output.items, last)
        logprobs = [made.logprobs for made in output.items if made.logprobs]
        yield Told(state_event(response, output.next_number()), logprobs)

    return read_events("".join(piece for one in told() for piece in event_pieces(one, spell)))


def of_parts(*parts: OutputPart) -> TokensEvent:
    text = "".join(part.text for part in parts if isinstance(part, ContentPart))
    return TokensEvent(token_ids=(1,), text=text, parts=parts)


def test_thinking_content_and_calls_are_items_of_their_own() -> None:
    response = check_events(streamed([of_parts(part) for part in ALL], end()))
    assert response["status"] == "completed"
    assert [item["type"] for item in response["output"]] == [
        *("reasoning", "message", "function_call", "function_call")
    ]
    reasoning, message, first, second = response["output"]
    assert reasoning["content"] == [{"type": "reasoning_text", "text": "I think."}]
    assert reasoning["summary"] == []
    assert message["content"][0]["text"] == "So be it."
    assert (first["call_id"], first["namespace"], first["name"]) == ("call_1", "near", "find")
    assert json.loads(first["arguments"]) == {"a": 1}
    assert (second["call_id"], second["namespace"], second["name"]) == ("call_2", None, "add")
    assert response["usage"] == {
        "input_tokens": 3,
        "input_tokens_details": {"cached_tokens": 1, "cache_write_tokens": 0},
        "output_tokens": 7,
        "output_tokens_details": {"reasoning_tokens": 2},
        "total_tokens": 10,
    }


@pytest.mark.parametrize("place", range(len(ALL) + 1))
def test_the_items_do_not_depend_on_how_the_output_comes(place: int) -> None:
    one_by_one = check_events(streamed([of_parts(part) for part in ALL], end()))
    in_two = check_events(streamed([of_parts(*ALL[:place])], end(FinishReason.STOP, *ALL[place:])))
    assert in_two["output"] == one_by_one["output"]


def test_a_call_that_is_cut_is_incomplete_and_its_arguments_are_not_called_done() -> None:
    events = streamed([of_parts(*CALL[:2])], end(FinishReason.LENGTH))
    response = check_events(events)
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    [call] = response["output"]
    assert (call["status"], call["arguments"]) == ("incomplete", '{"a": ')
    assert not any(event["type"].endswith("arguments.done") for event in events)


def test_an_output_of_nothing_is_an_empty_message() -> None:
    [message] = check_events(streamed([], end()))["output"]
    assert message["content"] == [
        {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    ]


def test_text_that_is_not_divided_is_a_message() -> None:
    events = [TokensEvent(token_ids=(1,), text=text) for text in ("a", "", "b")]
    [message] = check_events(streamed(events, end(text="c")))["output"]
    assert message["content"][0]["text"] == "abc"


def with_logprobs(token: bytes, *parts: OutputPart) -> TokensEvent:
    text = "".join(part.text for part in parts if isinstance(part, ContentPart))
    one = TokenLogprobs(-0.5, [(token[0], -0.5), (0, -float("inf"))])
    return TokensEvent(token_ids=(token[0],), text=text, parts=parts, logprobs=(one,))


def test_log_probabilities_are_those_of_the_tokens_of_the_message() -> None:
    events = [
        with_logprobs(b"t", ReasoningPart("t")),
        with_logprobs(b"a"),  # its text waits for the next token
        with_logprobs(b"b", ContentPart("ab")),
        with_logprobs(b"c", ContentPart("c")),
        with_logprobs(b"d"),
    ]
    told = streamed(events, end(FinishReason.STOP, ContentPart("d")), with_logprobs=True)
    [_, message] = told[-1]["response"]["output"]
    [part] = message["content"]
    assert [one["token"] for one in part["logprobs"]] == ["a", "b", "c", "d"]
    assert part["logprobs"][0]["top_logprobs"][1] == {
        "token": "\0",
        "logprob": None,
        "bytes": [0],
    }
    deltas = [one for one in told if one["type"] == "response.output_text.delta"]
    assert [[one["token"] for one in delta["logprobs"]] for delta in deltas[:2]] == [
        ["a", "b"],
        ["c"],
    ]
