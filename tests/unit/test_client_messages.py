"""What the SDK refuses before anything is sent, and what it imports."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any, cast

import pytest

from stagecoach.client import Client, IncompatibleError, InvalidArgumentError, PromptLike
from stagecoach.client.call_timeout import call_timeout_s
from stagecoach.client.channel import channel_options
from stagecoach.client.completion import PartialCompletion, TokenLogprobs
from stagecoach.client.prompt import PromptOptions
from stagecoach.client.request import GenerateOptions, generate_request
from stagecoach.client.steps import StepReader
from stagecoach.v1 import generation_pb2

CALL_OF_NO_TEXT = {"name": "f", "arguments": {"x": 1}}


@pytest.mark.parametrize(
    "prompt",
    [
        [],
        b"hello",
        5,
        [1, "a"],
        [1.5],
        [1, {"role": "user", "content": "x"}],
        [-1],
        [2**32],
        "\ud800",
        [{"role": "user"}],
        [{"role": "user", "content": "x", "id": "y"}],
        [{"role": "user", "content": "x", "name": 5}],
        [{"content": "x", "name": "y"}],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": "\udfff"}],
        [{"role": "assistant", "content": None}],
        [{"role": "assistant", "tool_calls": "f"}],
        [{"role": "assistant", "tool_calls": [{"id": "1"}]}],
        [{"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": 5}}]}],
        [{"role": "assistant", "tool_calls": [{"id": "1", "function": CALL_OF_NO_TEXT}]}],
        [{"role": "tool", "content": "x", "tool_call_id": 5}],
        [{"role": "assistant", "content": "x", "reasoning": ["hm"]}],
    ],
)
def test_a_prompt_that_cannot_be_sent_is_refused(prompt: object) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        generate_request(cast(PromptLike, prompt))
    assert caught.value.field == "prompt"
    assert caught.value.message.startswith("prompt ")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", -1),
        ("max_tokens", 1.5),
        ("top_k", -5),
        ("temperature", "hot"),
        ("seed", -2),
        ("seed", 2**64),
        ("stop", [1]),
        ("stop_token_ids", [-1]),
        ("logit_bias", {-1: 0.0}),
        ("logit_bias", {1: "much"}),
        ("request_id", 7),
        ("cache_salt", 7),
        ("logprobs", -1),
        ("regex", 7),
        ("lark", 7),
        ("json_schema", {"const": {1, 2}}),
        ("json_schema", "\ud800"),
    ],
)
def test_a_value_that_no_message_can_hold_is_refused_by_name(name: str, value: object) -> None:
    options: Any = {name: value}
    with pytest.raises(InvalidArgumentError) as caught:
        generate_request("x", **options)
    assert caught.value.field == name


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("max_tokens", -1, "max_tokens is -1, must be a whole number from 0 to 4294967295"),
        ("seed", -2, "seed is -2, must be a whole number from 0 to 18446744073709551615"),
        ("temperature", "hot", "temperature is 'hot', must be a number"),
        ("request_id", 7, "request_id is 7, must be text"),
        ("ignore_eos", "no", "ignore_eos is 'no', must be True or False"),
        ("stop_token_ids", [-1], "stop_token_ids is [-1], which it cannot be"),
    ],
)
def test_what_a_value_may_be_is_said(name: str, value: object, told: str) -> None:
    options: Any = {name: value}
    with pytest.raises(InvalidArgumentError) as caught:
        generate_request("x", **options)
    assert caught.value.message == told


def test_what_http_takes_for_no_seed_and_no_limit_is_taken() -> None:
    assert not generate_request("x", seed=-1).sampling.HasField("seed")
    assert generate_request("x", max_tokens=999_999_999_999).max_tokens == 2**32 - 1


def test_an_unknown_option_is_an_error() -> None:
    options: Any = {"temprature": 1.0}
    with pytest.raises(TypeError, match="temprature"):
        generate_request("x", **options)


def test_every_field_of_the_message_has_an_option_and_none_is_invented() -> None:
    request = generation_pb2.GenerateRequest.DESCRIPTOR.fields_by_name
    sampling = generation_pb2.SamplingParams.DESCRIPTOR.fields_by_name
    forms = generation_pb2.Grammar.DESCRIPTOR.fields_by_name
    fields = {*request, *sampling, *forms} - {"prompt", "sampling", "grammar"}
    fields |= set(PromptOptions.__annotations__)
    assert set(GenerateOptions.__annotations__) == fields


def test_zero_is_sent_and_none_is_not() -> None:
    request = generate_request("x", temperature=0.0, top_p=None, max_tokens=None)
    assert request.sampling.HasField("temperature")
    assert not request.sampling.HasField("top_p")
    assert not request.HasField("max_tokens")


def test_a_completion_without_tokens_has_no_time_to_first_token() -> None:
    partial = PartialCompletion(wants_prompt_logprobs=False)
    finished = generation_pb2.Finished(
        finish_reason=generation_pb2.FINISH_REASON_STOP,
        num_prompt_tokens=1,
        timings=generation_pb2.RequestTimings(total_ns=10),
    )
    assert partial.take(generation_pb2.GenerateResponse(finished=finished)) is None
    assert partial.completion is not None
    assert partial.completion.timings.time_to_first_token_ns is None
    assert partial.completion.tokens_per_second == 0.0


@pytest.mark.parametrize(
    ("address", "uses_proxy"),
    [("localhost:1", 0), ("127.0.0.1:1", 0), ("[::1]:1", 0), ("10.0.0.1:1", 1), ("host:1", 1)],
)
def test_proxies_are_ignored_on_the_way_to_this_machine(address: str, uses_proxy: int) -> None:
    assert dict(channel_options(address))["grpc.enable_http_proxy"] == uses_proxy


def test_importing_the_sdk_loads_no_heavy_library() -> None:
    heavy = ("torch", "transformers", "numpy", "tokenizers", "rich", "typer")
    program = (
        "import sys, stagecoach.client; "
        f"print(*(name for name in {heavy!r} if name in sys.modules))"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    assert run.stdout.split() == []


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"json_schema": {"type": "integer"}}, {"json_schema": '{"type": "integer"}'}),
        ({"json_schema": '{"type":"null"}'}, {"json_schema": '{"type":"null"}'}),
        ({"json_schema": False}, {"json_schema": "false"}),
        ({"json_object": True}, {"json_object": generation_pb2.JsonObject()}),
        ({"regex": "a+", "json_object": False, "lark": None}, {"regex": "a+"}),
        ({"lark": 'start: "a"'}, {"lark": 'start: "a"'}),
    ],
)
def test_the_form_of_the_output_is_sent(options: Any, expected: Any) -> None:
    request = generate_request("p", **options)
    assert request.grammar == generation_pb2.Grammar(**expected)


def test_no_form_is_sent_unless_one_was_asked_for() -> None:
    assert not generate_request("p", json_object=False, regex=None).HasField("grammar")


def test_two_forms_of_output_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="json_object and regex are both given"):
        generate_request("p", json_object=True, regex="a")


def test_a_completion_gathers_the_logprobs_of_its_tokens() -> None:
    partial = PartialCompletion(wants_prompt_logprobs=False)
    for token_id in (3, 4):
        logprobs = generation_pb2.TokenLogprobs(
            logprob=-0.5, top_token_ids=[token_id, 9], top_logprobs=[-0.5, -2.0]
        )
        chunk = generation_pb2.TokenChunk(token_ids=[token_id], text="x", logprobs=[logprobs])
        event = partial.take(generation_pb2.GenerateResponse(tokens=chunk))
        assert event is not None
        assert event.logprobs == (TokenLogprobs(-0.5, ((token_id, -0.5), (9, -2.0))),)
    partial.take(
        generation_pb2.GenerateResponse(
            finished=generation_pb2.Finished(finish_reason=generation_pb2.FINISH_REASON_STOP)
        )
    )
    assert partial.completion is not None
    assert [one.top[0][0] for one in partial.completion.logprobs] == [3, 4]


@pytest.mark.parametrize("num_prompt_tokens", [1, 2, 5])
def test_a_coordinator_that_is_too_old_for_prompt_logprobs_is_named(
    num_prompt_tokens: int,
) -> None:
    """It skips the field, which it does not know, and would answer as if nothing was asked for."""
    partial = PartialCompletion(wants_prompt_logprobs=True)
    finished = generation_pb2.Finished(
        finish_reason=generation_pb2.FINISH_REASON_LENGTH, num_prompt_tokens=num_prompt_tokens
    )
    message = generation_pb2.GenerateResponse(finished=finished)
    if num_prompt_tokens == 1:  # of which there is nothing to tell
        partial.take(message)
        assert partial.completion is not None
        assert partial.completion.prompt_logprobs == (None,)
        return
    words = f"told of 0 of {num_prompt_tokens - 1} tokens: it is of an older version"
    with pytest.raises(IncompatibleError, match=words) as caught:
        partial.take(message)
    assert caught.value.details["field"] == "prompt_logprobs"
    assert partial.completion is None


def test_an_aborted_completion_may_lack_a_part_of_its_prompt() -> None:
    partial = PartialCompletion(wants_prompt_logprobs=True)
    finished = generation_pb2.Finished(
        finish_reason=generation_pb2.FINISH_REASON_ABORT, num_prompt_tokens=5
    )
    partial.take(generation_pb2.GenerateResponse(finished=finished))
    assert partial.completion is not None
    assert partial.completion.finish_reason == "abort"


@pytest.mark.parametrize("timeout_s", [float("nan"), 0.0, -1.0, float("-inf"), "3", True])
def test_a_time_limit_that_is_no_time_is_refused(timeout_s: Any) -> None:
    calls: tuple[Callable[[Client], object], ...] = (
        lambda client: client.generate("x", timeout_s=timeout_s),
        lambda client: client.tokenize("x", timeout_s=timeout_s),
        lambda client: client.status(timeout_s=timeout_s),
        lambda client: client.watch_steps(timeout_s=timeout_s),
        lambda client: client.wait_until_ready(timeout_s),
    )
    with Client("127.0.0.1:1") as client:
        for call in calls:
            with pytest.raises(InvalidArgumentError, match=r"timeout_s is .*, must be above 0"):
                call(client)


def test_a_time_limit_beyond_what_grpc_counts_is_none() -> None:
    assert call_timeout_s(None) is None
    assert call_timeout_s(1e9) == 1e9
    assert call_timeout_s(9e9) is None
    assert call_timeout_s(float("inf")) is None


@pytest.mark.parametrize(("told_ns", "decided_ns"), [(None, 20), (25, 25)])
def test_an_older_coordinator_tells_one_instant_for_sampled_and_decided(
    told_ns: int | None, decided_ns: int
) -> None:
    record = generation_pb2.StepRecord(sampling_ns=10, sampled_ns=20, decided_ns=told_ns)
    reader = StepReader()
    reader.take(generation_pb2.WatchStepsResponse(steps=generation_pb2.StepChunk(records=[record])))
    found = reader.next()
    assert found is not None
    assert (found.sampling_ns, found.sampled_ns, found.decided_ns) == (10, 20, decided_ns)
