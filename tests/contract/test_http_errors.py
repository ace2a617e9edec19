"""Bad input and failures over HTTP: every one has a status, OpenAI's shape and no secret."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest

from coordinator.core.request_spec import ChatMessage, ChatPrompt
from stagecoach.contract import errors
from tests.contract.echo_engine import MAX_MODEL_LEN, EchoEngine
from tests.contract.http_door import http_client, serving_http

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
JSON = {"content-type": "application/json"}
MESSAGES = [{"role": "user", "content": "hello"}]

ERROR_TABLE = [
    (errors.InvalidArgumentError("stop is bad", field="stop"), 400, "invalid_value"),
    (errors.ContextLengthExceededError("9 of 5", limit=5), 400, "context_length_exceeded"),
    (errors.UnauthenticatedError("no key"), 401, "invalid_api_key"),
    (errors.QueueFullError("full"), 429, "queue_full"),
    (errors.UnavailableError("draining"), 503, "unavailable"),
    (errors.DeadlineExceededError("late"), 504, "deadline_exceeded"),
    (errors.InternalError("see the log"), 500, "internal_error"),
    (errors.StaleStateError("stale"), 500, "internal_error"),
]


@pytest.fixture
async def engine() -> EchoEngine:
    return EchoEngine()


@pytest.fixture
async def client(engine: EchoEngine) -> AsyncIterator[httpx2.AsyncClient]:
    async with http_client(engine) as found:
        yield found


def error_of(response: httpx2.Response) -> dict[str, Any]:
    body = response.json()
    assert set(body) == {"error"}
    error: dict[str, Any] = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert "Traceback" not in response.text
    assert ".py" not in response.text
    assert response.headers["x-request-id"]
    return error


@pytest.mark.parametrize(
    ("failure", "status", "code"), ERROR_TABLE, ids=[type(row[0]).__name__ for row in ERROR_TABLE]
)
@pytest.mark.parametrize("stream", [False, True])
async def test_every_failure_before_the_first_token_has_its_status(
    engine: EchoEngine,
    client: httpx2.AsyncClient,
    failure: errors.StagecoachError,
    status: int,
    code: str,
    stream: bool,
) -> None:
    engine.failure = failure
    response = await client.post(TEXT, json={"prompt": "x", "stream": stream})
    assert response.status_code == status
    assert error_of(response)["code"] == code
    assert error_of(response)["message"] == failure.message
    assert ("retry-after" in response.headers) == (status in (429, 503))
    engine.failure, engine.fail_after_tokens = failure, 0
    late = await client.post(TEXT, json={"prompt": "x", "stream": stream})
    assert late.status_code == status


@pytest.mark.parametrize("stream", [False, True])
async def test_a_bug_is_a_500_with_the_id_that_the_log_has(
    engine: EchoEngine,
    client: httpx2.AsyncClient,
    caplog: pytest.LogCaptureFixture,
    stream: bool,
) -> None:
    engine.failure = RuntimeError("/secret/path")
    response = await client.post(TEXT, json={"prompt": "x", "stream": stream})
    assert response.status_code == 500
    request_id = response.headers["x-request-id"]
    assert request_id in error_of(response)["message"]
    assert "secret" not in response.text
    assert f"internal error in request {request_id}" in caplog.text


async def test_without_an_engine_only_health_and_version_are_well() -> None:
    async with (
        serving_http() as address,
        httpx2.AsyncClient(base_url=f"http://{address}") as client,
    ):
        for path in ("/health", "/version"):
            assert (await client.get(path)).status_code == 200
        for path in ("/ready", "/v1/models", "/status"):
            response = await client.get(path)
            assert response.status_code == 503
            assert error_of(response)["code"] == "unavailable"
        response = await client.post(TEXT, json={"prompt": "x"})
        assert response.status_code == 503


async def test_an_engine_that_lost_a_stage_is_not_ready(
    engine: EchoEngine, client: httpx2.AsyncClient
) -> None:
    assert (await client.get("/ready")).status_code == 200
    engine.is_ready = False
    assert (await client.get("/ready")).status_code == 503
    assert (await client.get("/health")).status_code == 200


async def test_unknown_paths_and_methods_have_the_shape_of_all_errors(
    client: httpx2.AsyncClient,
) -> None:
    missing = await client.get("/v1/nothing")
    assert missing.status_code == 404
    assert error_of(missing)["code"] == "not_found"
    wrong = await client.get(TEXT)
    assert wrong.status_code == 405
    assert wrong.headers["allow"] == "POST"
    assert error_of(wrong)["code"] == "method_not_allowed"


async def test_all_methods_of_a_path_are_named_where_one_is_refused(
    client: httpx2.AsyncClient,
) -> None:
    wrong = await client.put("/v1/responses/resp_1")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "DELETE, GET, HEAD")
    wrong = await client.post("/v1/models")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"hello",
        b"[]",
        b"null",
        b"{",
        b'{"prompt": "x"} trailing',
        b'{"prompt": "\xff\xfe"}',
        b'{"prompt": "\xed\xa0\x80"}',
        rb'{"prompt": "\ud800"}',
        rb'{"prompt": "\udc00\ud800"}',
        b'{"prompt": "x", "temperature": NaN}',
        b'{"prompt": "x", "temperature": Infinity}',
        b'{"prompt": "x", "temperature": -Infinity}',
        b'{"prompt": "x", "temperature": 1e999}',
        b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"prompt": "x", "structured_outputs": {"json": ' + b'{"a":' * 5000 + b"1" + b"}" * 5002,
        b'{"prompt": "x", "max_tokens": ' + b"9" * 5000 + b"}",
    ],
    ids=lambda body: repr(body[:24]),
)
async def test_what_is_no_request_is_a_400(client: httpx2.AsyncClient, body: bytes) -> None:
    response = await client.post(TEXT, content=body, headers=JSON)
    assert response.status_code == 400
    assert error_of(response)["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("settings", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt[0]"),
        ({"prompt": ["x", ""]}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": [1, -2]}, "prompt[1]"),
        ({"prompt": [1, 2.5]}, "prompt[1]"),
        ({"prompt": [2**32]}, "prompt[0]"),
        ({"prompt": ["x"] * 129}, "prompt"),
        ({"prompt": ["x"] * 65, "n": 2}, "n"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": -5}, "top_k"),
        ({"top_k": 1.5}, "top_k"),
        ({"n": 0}, "n"),
        ({"n": 10**6}, "n"),
        ({"n": True}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop": ["x"] * 1000}, "stop"),
        ({"stop": ["x", ""]}, "stop[1]"),
        ({"logit_bias": {"x": 1}}, "logit_bias.x"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"logit_bias": {"9" * 11: 1}}, "logit_bias"),
        ({"logit_bias": {str(token): 1 for token in range(2000)}}, "logit_bias"),
        ({"seed": 2**64}, "seed"),
        ({"seed": 0.5}, "seed"),
        ({"echo": "yes"}, "echo"),
        ({"max_tokens": 0, "echo": False}, "max_tokens"),
        ({"prompt_logprobs": 21}, "prompt_logprobs"),
        ({"prompt_logprobs": -1}, "prompt_logprobs"),
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"logprobs": 21}, "logprobs"),
        ({"stream": "yes"}, "stream"),
        ({"stream": True, "stream_options": {"x": True}}, "stream_options.x"),
        ({"model": 5}, "model"),
        ({"no_such_field": False}, "no_such_field"),
        ({"max_tokens": -2}, "max_tokens"),
        ({"top_p": -0.1}, "top_p"),
        ({"stop": [""]}, "stop[0]"),
        ({"stop": {}}, "stop"),
        ({"cache_salt": ""}, "cache_salt"),
        ({"structured_outputs": {}}, "structured_outputs"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_a_value_out_of_range_is_named(
    client: httpx2.AsyncClient, settings: dict[str, Any], param: str
) -> None:
    response = await client.post(TEXT, json={"prompt": "x", **settings})
    assert response.status_code == 400
    error = error_of(response)
    assert error["param"] is not None
    assert error["param"].startswith(param)
    assert param in error["message"]


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "robot", "content": "x"}, "messages[0].role"),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]},
            "messages[0].content[0]",
        ),
        ({"role": "assistant", "content": "x", "tool_calls": [{}]}, "messages[0].tool_calls"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_a_message_that_cannot_be_honoured_is_named(
    client: httpx2.AsyncClient, message: dict[str, Any], param: str
) -> None:
    response = await client.post(CHAT, json={"messages": [message]})
    assert response.status_code == 400
    error = error_of(response)
    assert error["param"] is not None
    assert error["param"].startswith(param)


@pytest.mark.parametrize(("seed", "shown"), [(2**64, 2**64), (-(2**63) - 1, -(2**63) - 1)])
async def test_the_bounds_of_a_seed_are_told_to_the_last_digit(
    client: httpx2.AsyncClient, seed: int, shown: int
) -> None:
    response = await client.post(TEXT, json={"prompt": "x", "seed": seed})
    assert error_of(response)["message"] == (
        f"seed is {shown}, must be from -9223372036854775808 to 18446744073709551615"
    )


@pytest.mark.parametrize("padding", ["", "x" * 40_000], ids=["small", "large"])
@pytest.mark.parametrize("number", ["1e999", "-1e999", "NaN", "Infinity"])
async def test_metadata_that_could_not_be_returned_is_refused(
    client: httpx2.AsyncClient, number: str, padding: str
) -> None:
    """Such a number came back as null."""
    body = '{"messages": [{"role": "user", "content": "x%s"}], "metadata": {"a": [{"b": %s}]}}'
    response = await client.post(
        CHAT, content=body % (padding, number), headers={"content-type": "application/json"}
    )
    assert response.status_code == 400
    assert error_of(response)["param"] == "metadata"
    assert "at .a[0].b" in error_of(response)["message"]


async def test_more_stop_strings_than_allowed_are_counted(client: httpx2.AsyncClient) -> None:
    response = await client.post(TEXT, json={"prompt": "x", "stop": ["x"] * 17})
    error = error_of(response)
    assert error["param"] == "stop"
    assert error["message"] == "stop: List should have at most 16 items after validation, not 17"


@pytest.mark.parametrize(
    ("path", "asked", "named"),
    [
        (TEXT, {"prompt": "x", "unheard_of": None}, "unheard_of"),
        (TEXT, {"prompt": "x", "unheard_of": None, "stream": True}, "unheard_of"),
        (CHAT, {"messages": [{**MESSAGES[0], "unheard_of": 1}]}, "messages[0].unheard_of"),
        ("/tokenize", {"prompt": "x", "unheard_of": []}, "unheard_of"),
        ("/detokenize", {"tokens": [65], "unheard_of": ""}, "unheard_of"),
    ],
)
async def test_what_was_ignored_is_named_in_the_answer_and_once_in_the_log(
    client: httpx2.AsyncClient,
    path: str,
    asked: dict[str, Any],
    named: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    for _ in range(2):
        response = await client.post(path, json=asked)
        assert response.status_code == 200
        assert response.headers["x-stagecoach-ignored"] == named
    assert caplog.text.count("unheard_of, which changes nothing") == 1
    response = await client.post(TEXT, json={"prompt": "x", "user": None})
    assert "x-stagecoach-ignored" not in response.headers


async def test_a_refusal_names_what_was_ignored_too(
    engine: EchoEngine, client: httpx2.AsyncClient
) -> None:
    engine.failure = errors.QueueFullError("full")
    response = await client.post(TEXT, json={"prompt": "x", "user": "me"})
    assert response.status_code == 429
    assert response.headers["x-stagecoach-ignored"] == "user"


CORE_NAMES = [
    (TEXT, {"prompt": "x"}, "prompt.text is bad", "prompt.text", "prompt"),
    (TEXT, {"prompt": [1, 2]}, "prompt.token_ids[1] is bad", "prompt.token_ids", "prompt"),
    (CHAT, {"messages": MESSAGES}, "prompt has no tokens", "prompt", "messages"),
    (CHAT, {"messages": MESSAGES}, "refused", "prompt.chat.messages", "messages"),
    (CHAT, {"messages": MESSAGES}, "refused", "prompt.chat.messages[0]", "messages[0]"),
    (CHAT, {"messages": MESSAGES}, "refused", "prompt.chat", "messages"),
    (CHAT, {"messages": MESSAGES, "max_tokens": 3}, "bad", "max_tokens", "max_tokens"),
    (
        CHAT,
        {"messages": MESSAGES, "max_completion_tokens": 3},
        "max_tokens is 3",
        "max_tokens",
        "max_completion_tokens",
    ),
    (
        TEXT,
        {"prompt": "x", "structured_outputs": {"json": "{}"}},
        "grammar.json_schema is bad",
        "grammar.json_schema",
        "structured_outputs.json",
    ),
    (
        TEXT,
        {"prompt": "x", "structured_outputs": {"regex": "a"}},
        "grammar.regex is bad",
        "grammar.regex",
        "structured_outputs.regex",
    ),
    (
        TEXT,
        {"prompt": "x", "structured_outputs": {"grammar": "a"}},
        "grammar.lark is bad",
        "grammar.lark",
        "structured_outputs.grammar",
    ),
    (
        TEXT,
        {"prompt": "x", "response_format": {"type": "json_object"}},
        "grammar.json_object is bad",
        "grammar.json_object",
        "response_format",
    ),
    (TEXT, {"prompt": "x", "seed": 1}, "sampling.seed is bad", "sampling.seed", "seed"),
]


@pytest.mark.parametrize(("path", "body", "message", "field", "param"), CORE_NAMES)
@pytest.mark.parametrize("stream", [False, True])
async def test_what_the_engine_refuses_is_named_as_the_client_wrote_it(
    engine: EchoEngine,
    client: httpx2.AsyncClient,
    path: str,
    body: dict[str, Any],
    message: str,
    field: str,
    param: str,
    stream: bool,
) -> None:
    engine.failure = errors.InvalidArgumentError(message, field=field)
    error = error_of(await client.post(path, json={**body, "stream": stream}))
    assert error["param"] == param
    assert "grammar." not in error["message"]
    assert "prompt." not in error["message"]
    assert "sampling." not in error["message"]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [(TEXT, {"prompt": "x"}, "prompt"), (CHAT, {"messages": MESSAGES}, "messages")],
)
async def test_a_prompt_that_leaves_no_room_is_named(
    engine: EchoEngine, client: httpx2.AsyncClient, path: str, body: dict[str, Any], param: str
) -> None:
    engine.failure = errors.ContextLengthExceededError("9 of 5", limit=5)
    assert error_of(await client.post(path, json=body))["param"] == param


TOO_LONG = "x" * MAX_MODEL_LEN


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("prompts", "param", "message"),
    [
        (["a", TOO_LONG, "b"], "prompt[1]", f"prompt[1]: {MAX_MODEL_LEN} prompt tokens leave"),
        (["a", "b", TOO_LONG], "prompt[2]", f"prompt[2]: {MAX_MODEL_LEN} prompt tokens leave"),
        ([[1], [2, 300]], "prompt[1]", "prompt[1]: token id 300 is outside"),
        ([TOO_LONG], "prompt", f"{MAX_MODEL_LEN} prompt tokens leave"),
        ([[300]], "prompt", "token id 300 is outside"),
    ],
    ids=lambda value: str(value)[:24],
)
async def test_of_several_prompts_the_one_that_is_wrong_is_named(
    engine: EchoEngine,
    client: httpx2.AsyncClient,
    prompts: list[Any],
    param: str,
    message: str,
    stream: bool,
) -> None:
    body = {"prompt": prompts, "stream": stream, "n": 2, "max_tokens": 1}
    response = await client.post(TEXT, json=body)
    assert response.status_code == 400
    error = error_of(response)
    assert error["param"] == param
    assert error["message"].startswith(message)
    assert not engine.running


@pytest.mark.parametrize(
    ("field", "said", "shown"),
    [
        ("prompt.text", "prompt.text has a lone surrogate", "prompt[0] has a lone surrogate"),
        ("prompt.token_ids", "prompt.token_ids[7] is bad", "prompt[0][7] is bad"),
        ("prompt", "the prompt is long", "prompt[0] is long"),
        ("prompt", "prompt: token id 9 is bad", "prompt[0]: token id 9 is bad"),
        ("stop", "stop is bad", "stop is bad"),
    ],
)
async def test_only_what_is_said_of_a_prompt_is_said_of_one_of_several(
    engine: EchoEngine, client: httpx2.AsyncClient, field: str, said: str, shown: str
) -> None:
    engine.failure = errors.InvalidArgumentError(said, field=field)
    error = error_of(await client.post(TEXT, json={"prompt": ["a", "b"]}))
    assert error["message"] == shown
    assert error["param"] == (field if field == "stop" else "prompt[0]")


@pytest.mark.parametrize("padding", ["", "x" * 40_000], ids=["small", "large"])
@pytest.mark.parametrize("path", [CHAT, "/tokenize"])
async def test_a_name_reaches_the_model_and_is_named_where_that_makes_nothing_of_it(
    engine: EchoEngine, client: httpx2.AsyncClient, path: str, padding: str
) -> None:
    turn = {"role": "user", "content": "hello", "name": "Ada", "note": padding}
    response = await client.post(path, json={"messages": [turn]})
    assert response.status_code == 200
    ignored = response.headers["x-stagecoach-ignored"].split(", ")
    assert set(ignored) == {"messages[0].name", "messages[0].note"}
    message = ChatMessage(role="user", content="hello", name="Ada")
    assert {spec.prompt for spec in engine.specs} <= {ChatPrompt(messages=(message,))}
    assert len(engine.specs) == (path == CHAT)


async def test_a_name_that_the_model_is_told_is_not_called_ignored(
    engine: EchoEngine, client: httpx2.AsyncClient
) -> None:
    engine.shows_names = True
    turn = {"role": "user", "content": "hello", "name": "Ada"}
    for body in ({"messages": [turn]}, {"messages": [{**turn, "note": "x" * 40_000}]}):
        response = await client.post("/tokenize", json=body)
        assert bytes(response.json()["tokens"]) == b"Ada: hello\n"
        assert "name" not in response.headers.get("x-stagecoach-ignored", "")
    response = await client.post("/tokenize", json={"messages": [{**turn, "name": 5}]})
    assert error_of(response)["param"] == "messages[0].name"
    response = await client.post("/tokenize", json={"messages": [{**turn, "name": None}]})
    assert bytes(response.json()["tokens"]) == b"user: hello\n"


async def test_an_image_is_refused_by_its_type(client: httpx2.AsyncClient) -> None:
    part = {"type": "image_url", "image_url": {"url": "data:"}}
    response = await client.post(CHAT, json={"messages": [{"role": "user", "content": [part]}]})
    assert "image_url" in error_of(response)["message"]


async def test_two_names_of_one_limit_must_agree(client: httpx2.AsyncClient) -> None:
    body = {"messages": MESSAGES, "max_tokens": 3}
    assert (await client.post(CHAT, json={**body, "max_completion_tokens": 3})).status_code == 200
    response = await client.post(CHAT, json={**body, "max_completion_tokens": 4})
    assert response.status_code == 400
    assert error_of(response)["param"] == "max_tokens"


async def test_a_nul_is_a_character_like_any_other(client: httpx2.AsyncClient) -> None:
    response = await client.post("/tokenize", json={"prompt": "a\0b"})
    assert response.json()["tokens"] == [97, 0, 98]


async def test_an_error_does_not_repeat_a_prompt(client: httpx2.AsyncClient) -> None:
    response = await client.post(TEXT, json={"prompt": {"secret": "words"}})
    assert response.status_code == 400
    assert "words" not in response.text


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_over_the_limit_is_not_read(
    engine: EchoEngine, client: httpx2.AsyncClient, chunked: bool
) -> None:
    num_bytes = MAX_MODEL_LEN * 64 + 2**20
    for size, status in ((num_bytes // 4, 400), (num_bytes + 1, 413), (8 * num_bytes, 413)):
        body = json.dumps({"prompt": "x" * size, "max_tokens": 1}).encode()

        async def pieces(whole: bytes = body) -> AsyncIterator[bytes]:
            for start in range(0, len(whole), 2**16):
                yield whole[start : start + 2**16]

        content = pieces() if chunked else body
        response = await client.post(TEXT, content=content, headers=JSON)
        assert response.status_code == status
        error_of(response)
    assert engine.specs == []


@pytest.mark.parametrize(
    "headers",
    [{"content-type": "text/plain"}, {}, {**JSON, "content-encoding": "gzip"}],
    ids=["text", "none", "gzip"],
)
async def test_a_body_that_does_not_call_itself_json_is_refused(
    client: httpx2.AsyncClient, headers: dict[str, str]
) -> None:
    response = await client.post(TEXT, content=b'{"prompt": "x"}', headers=headers)
    assert response.status_code == 415
    assert error_of(response)["code"] == "unsupported_media_type"


async def test_a_burst_above_the_queue_is_refused_and_the_accepted_finish(
    engine: EchoEngine, client: httpx2.AsyncClient
) -> None:
    engine.delay_s = 0.01
    responses = await asyncio.gather(
        *(client.post(TEXT, json={"prompt": "abc", "max_tokens": 20}) for _ in range(80))
    )
    statuses = [response.status_code for response in responses]
    assert set(statuses) == {200, 429}
    assert statuses.count(200) >= engine.max_running
    for response in responses:
        if response.status_code == 200:
            assert response.json()["usage"]["completion_tokens"] == 20
