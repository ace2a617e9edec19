"""What real clients send, as it was recorded from them; see `client_bodies/README.md`."""

import json
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.contract.echo_engine import EchoEngine
from tests.contract.http_door import serving_http

BODIES: list[dict[str, Any]] = json.loads(
    (Path(__file__).parent / "client_bodies" / "bodies.json").read_text()
)


@pytest.mark.parametrize("sent", BODIES, ids=[f"{one['client']}: {one['what']}" for one in BODIES])
async def test_what_a_client_sends_is_answered(sent: dict[str, Any]) -> None:
    async with (
        serving_http(EchoEngine(names=["demo"])) as address,
        httpx2.AsyncClient(base_url=f"http://{address}") as client,
    ):
        response = await client.post(sent["path"], json=sent["body"])
    assert response.status_code == 200, response.text
    ignored = response.headers.get("x-stagecoach-ignored", "")
    assert [name for name in ignored.split(", ") if name] == sent["ignored"]
    assert response.text.endswith(ending_of(sent["path"])) == sent["body"].get("stream", False)


def ending_of(path: str) -> str:
    """What a stream ends with."""
    if path.startswith("/v1/messages"):
        return 'data: {"type":"message_stop"}\n\n'
    return "}\n" if path.startswith("/api/") else "data: [DONE]\n\n"
