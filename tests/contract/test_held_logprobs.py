"""What whole answers hold of log-probabilities has a bound, over all that are made at once."""

from typing import Any

import pytest

from coordinator.core.events import TokenLogprobs
from coordinator.doors.http import held_logprobs
from tests.contract.echo_engine import EchoEngine
from tests.contract.http_door import events_of, serving_http
from tests.contract.test_http_stream import post

PATHS = {
    "/v1/completions": {"prompt": "abc", "logprobs": 2},
    "/v1/chat/completions": {
        "messages": [{"role": "user", "content": "abc"}],
        "logprobs": True,
        "top_logprobs": 2,
    },
}


@pytest.mark.parametrize("path", PATHS)
async def test_an_answer_that_would_hold_too_much_is_refused_and_lets_go(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = EchoEngine()
    engine.logprobs = TokenLogprobs(-0.25, ((7, -0.125), (8, -2.5)))
    monkeypatch.setattr(held_logprobs, "MAX_HELD_BYTES", 10 * engine.logprobs.num_bytes)
    fields: dict[str, Any] = PATHS[path]
    async with serving_http(engine) as address:
        for _ in range(2):
            large = await post(address, path, {**fields, "max_tokens": 6, "n": 2})
            assert large.status_code == 429
            assert "may be held at once" in large.json()["error"]["message"]
            small = await post(address, path, {**fields, "max_tokens": 5, "n": 2})
            assert small.status_code == 200
        streamed = await post(address, path, {**fields, "max_tokens": 30, "stream": True})
        assert events_of(streamed.text)[-1].data == "[DONE]"
