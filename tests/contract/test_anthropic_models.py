"""The list of models as Anthropic's clients read it, which say so by a header."""

from collections.abc import AsyncIterator
from datetime import datetime

import httpx2
import pytest

from tests.contract.echo_engine import MAX_MODEL_LEN, EchoEngine
from tests.contract.http_door import DEADLINE_S, serving_http

HEADERS = {"anthropic-version": "2023-06-01"}


@pytest.fixture
async def client() -> AsyncIterator[httpx2.AsyncClient]:
    async with (
        serving_http(EchoEngine(names=["org/one", "two"])) as address,
        httpx2.AsyncClient(base_url=f"http://{address}", timeout=DEADLINE_S) as found,
    ):
        yield found


async def test_every_name_is_on_one_page(client: httpx2.AsyncClient) -> None:
    page = (await client.get("/v1/models?limit=20", headers=HEADERS)).json()
    assert [model["id"] for model in page["data"]] == ["org/one", "two"]
    assert (page["has_more"], page["first_id"], page["last_id"]) == (False, "org/one", "two")
    for model in page["data"]:
        assert (model["type"], model["lifecycle"]) == ("model", "active")
        assert model["display_name"] == model["id"]
        assert datetime.fromisoformat(model["created_at"]).tzinfo is not None
        assert model["max_input_tokens"] == model["max_tokens"] == MAX_MODEL_LEN


async def test_one_model_is_described(client: httpx2.AsyncClient) -> None:
    [first, _] = (await client.get("/v1/models", headers=HEADERS)).json()["data"]
    assert (await client.get("/v1/models/org/one", headers=HEADERS)).json() == first


async def test_an_error_has_the_form_of_whoever_asks(client: httpx2.AsyncClient) -> None:
    wrong = await client.get("/v1/models/three", headers=HEADERS)
    assert wrong.status_code == 404
    assert wrong.json()["error"]["type"] == "not_found_error"
    assert wrong.json()["request_id"]
    assert (await client.get("/v1/models/three")).json()["error"]["code"] == "model_not_found"


async def test_without_the_header_the_list_is_that_of_openai(client: httpx2.AsyncClient) -> None:
    listed = (await client.get("/v1/models")).json()
    assert (listed["object"], listed["data"][0]["object"]) == ("list", "model")
