"""What clients of `/v1/responses` send, as it was recorded; see `client_bodies/README.md`."""

import json
from pathlib import Path
from typing import Any

import httpx2
import pytest

from coordinator.core.output_parts import ArgumentsPart, CallBegins, CallEnds
from coordinator.core.request_spec import ChatPrompt
from tests.contract.echo_engine import EchoEngine
from tests.contract.http_door import serving_http
from tests.contract.spoken_engine import SpokenEngine
from tests.responses_events import check_events, check_response, read_events

BODIES: list[dict[str, Any]] = json.loads(
    (Path(__file__).parent / "client_bodies" / "responses.json").read_text()
)
CODEX = BODIES[0]["body"]


@pytest.mark.parametrize("sent", BODIES, ids=[f"{one['client']}: {one['what']}" for one in BODIES])
async def test_what_a_client_sends_is_answered(sent: dict[str, Any]) -> None:
    async with (
        serving_http(EchoEngine()) as address,
        httpx2.AsyncClient(base_url=f"http://{address}") as client,
    ):
        response = await client.post("/v1/responses", json=sent["body"])
    assert response.status_code == 200, response.text
    ignored = response.headers.get("x-stagecoach-ignored", "")
    assert [name for name in ignored.split(", ") if name] == sent["ignored"]
    if sent["body"].get("stream"):
        check_events(read_events(response.text))
    else:
        check_response(response.json())


async def test_a_function_of_a_namespace_is_called_by_the_names_that_its_client_wrote() -> None:
    call = (
        CallBegins(0, "call_1", "multi_agent_v1.wait_agent"),
        ArgumentsPart(0, "{}"),
        CallEnds(0),
    )
    engine = SpokenEngine(call)
    async with (
        serving_http(engine) as address,
        httpx2.AsyncClient(base_url=f"http://{address}") as client,
    ):
        response = await client.post("/v1/responses", json=CODEX)
    [item] = check_events(read_events(response.text))["output"]
    assert (item["namespace"], item["name"]) == ("multi_agent_v1", "wait_agent")
    [spec] = engine.specs
    assert isinstance(spec.prompt, ChatPrompt)
    names = [tool.name for tool in spec.prompt.tools]
    assert "exec_command" in names
    described = {tool.name: tool.description or "" for tool in spec.prompt.tools}
    assert described["multi_agent_v1.wait_agent"].startswith("Tools for spawning")
    assert "multi_agent_v1.wait_agent" in names
    assert not any("search" in name for name in names)


async def test_what_codex_says_in_two_messages_of_the_system_is_one() -> None:
    engine = EchoEngine()
    async with (
        serving_http(engine) as address,
        httpx2.AsyncClient(base_url=f"http://{address}") as client,
    ):
        await client.post("/v1/responses", json=CODEX)
    [spec] = engine.specs
    assert isinstance(spec.prompt, ChatPrompt)
    assert [message.role for message in spec.prompt.messages] == ["system", "user", "user"]
