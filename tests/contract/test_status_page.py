"""The status page's files and its stream of states, from a real HTTP server."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import httpx2
import pytest

from coordinator.core.request_spec import RequestSpec, TextPrompt
from coordinator.doors.access.callers import Callers
from coordinator.doors.http import live_status
from coordinator.doors.http.page_routes import PAGE_PATHS
from coordinator.engine.engines import Engines
from stagecoach.contract.errors import UnavailableError
from stagecoach.contract.status_json import status_json
from tests.contract.echo_engine import EchoEngine
from tests.contract.http_door import serving_http

PAGE = Path(live_status.__file__).parent / "page"


@asynccontextmanager
async def client_of(
    engine: EchoEngine | None, callers: Callers | None = None
) -> AsyncIterator[httpx2.AsyncClient]:
    async with (
        serving_http(*([] if engine is None else [engine]), callers=callers) as address,
        httpx2.AsyncClient(base_url=f"http://{address}", timeout=30, trust_env=False) as client,
    ):
        yield client


@asynccontextmanager
async def states(client: httpx2.AsyncClient) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
    """The states of one viewer."""

    async def read(response: httpx2.Response) -> AsyncIterator[dict[str, Any]]:
        async for line in response.aiter_lines():
            if line:
                yield json.loads(line.removeprefix("data: "))

    async with client.stream("GET", "/status/stream") as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        yield read(response)


@pytest.fixture(autouse=True)
def short_period(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_status, "PERIOD_S", 0.01)


async def until_unwatched(engine: EchoEngine) -> None:
    while True:
        if not engine.steps.is_watched:
            return
        await asyncio.sleep(0.005)


async def test_the_page_is_served_before_there_is_an_engine() -> None:
    async with client_of(None) as client:
        page = await client.get("/")
        assert page.status_code == 200
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert page.text == (PAGE / "index.html").read_text()
        assert (await client.head("/")).status_code == 200


async def test_every_file_that_the_page_names_is_served_and_no_other_exists() -> None:
    async with client_of(None) as client:
        for path in PAGE_PATHS:
            file = await client.get(path)
            assert file.status_code == 200
            for name in re.findall(r'(?:src|href|from)[= ]"([^"#]+)"', file.text):
                assert urljoin(path, name) in PAGE_PATHS, f"{path} names {name}"
                assert not name.startswith("/"), f"{path} names {name}, which a proxy may not have"
        assert (await client.get("/page/../app.py")).status_code == 404
        assert (await client.get("/page/nothing.js")).status_code == 404
    served = {path.removeprefix("/page/") for path in PAGE_PATHS - {"/"}} | {"index.html"}
    assert served == {path.name for path in PAGE.iterdir() if path.suffix not in {".py", ""}}


async def test_a_browser_that_has_a_file_gets_304() -> None:
    async with client_of(None) as client:
        first = await client.get("/page/main.js")
        assert first.headers["cache-control"] == "no-cache"
        tag = first.headers["etag"]
        for known in (tag, f'W/{tag}, "other"', "*"):
            again = await client.get("/page/main.js", headers={"if-none-match": known})
            assert (again.status_code, again.content) == (304, b"")
            assert again.headers["etag"] == tag
        other = await client.get("/page/main.js", headers={"if-none-match": '"other"'})
        assert other.content == first.content


async def test_the_browser_is_told_to_run_and_load_nothing_else() -> None:
    async with client_of(None) as client:
        for path in PAGE_PATHS:
            policy = (await client.get(path)).headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
    page = (PAGE / "index.html").read_text()
    assert re.findall(r"\son[a-z]+=|style=|<style|https?://", page) == []
    for script in PAGE.glob("*.js"):
        assert "innerHTML" not in script.read_text()


async def test_states_show_the_engine_and_what_its_steps_did() -> None:
    engine = EchoEngine()
    async with client_of(engine) as client, states(client) as seen:
        first = await anext(seen)
        assert first["model"] == "echo"
        assert first["activity"]["steps"] == 0
        assert first["activity"]["stages"] == []
        status = (await client.get("/status")).json()
        assert status == {name: first[name] for name in status}
        spec = RequestSpec(prompt=TextPrompt(text="hello"), max_tokens=6)
        assert len([event async for event in await engine.submit(spec)]) == 1 + 6 + 1
        async for state in seen:
            if state["activity"]["steps"] == 6:
                break
        assert state["activity"]["prefill_tokens"] == 5
        assert state["activity"]["decode_tokens"] == 5
        assert len(state["activity"]["stages"]) == 2
        assert state["at_s"] > first["at_s"]


async def test_the_engine_is_watched_once_and_only_while_somebody_looks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = EchoEngine()
    num_watches = 0
    watch_steps = engine.watch_steps

    def counted() -> Any:
        nonlocal num_watches
        num_watches += 1
        return watch_steps()

    monkeypatch.setattr(engine, "watch_steps", counted)
    async with client_of(engine) as client:
        assert not engine.steps.is_watched
        async with states(client) as one, states(client) as other:
            await anext(one)
            await anext(other)
            assert engine.steps.is_watched
        await until_unwatched(engine)
        assert num_watches == 1
        async with states(client) as again:
            assert (await anext(again))["ready"]
        await until_unwatched(engine)
        assert num_watches == 2


async def test_a_stream_ends_when_the_engine_closes() -> None:
    engine = EchoEngine()
    async with client_of(engine) as client, states(client) as seen:
        await anext(seen)
        await engine.close(grace_s=0)
        assert all([state["model"] == "echo" async for state in seen])
    await until_unwatched(engine)


async def test_the_status_over_http_is_that_of_every_command() -> None:
    engine = EchoEngine()
    async with client_of(engine) as client:
        shown = await client.get("/status")
        expected = status_json(await Engines([engine]).status())
        assert json.dumps(shown.json()) == json.dumps(expected)
        async with states(client) as seen:
            state = await anext(seen)
            assert json.dumps({key: state[key] for key in expected}) == json.dumps(expected)
            assert set(state) - set(expected) == {"at_s", "activity", "activities"}


async def test_without_an_engine_a_viewer_is_told_why() -> None:
    async with client_of(None) as client:
        refused = await client.get("/status/stream")
        assert refused.status_code == 503
        assert "waits for its stages" in refused.json()["error"]["message"]


async def test_with_api_keys_the_page_is_open_and_the_states_are_not() -> None:
    key = "k" * 32
    async with client_of(EchoEngine(), Callers.of_text(f"alice:{key}")) as client:
        for path in PAGE_PATHS:
            assert (await client.get(path)).status_code == 200
        assert (await client.get("/status/stream")).status_code == 401
        client.headers["authorization"] = f"Bearer {key}"
        async with states(client) as seen:
            assert (await anext(seen))["ready"]


async def test_too_many_viewers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_status, "MAX_VIEWERS", 1)
    async with client_of(EchoEngine()) as client, states(client) as seen:
        await anext(seen)
        refused = await client.get("/status/stream")
        assert refused.status_code == 429
        assert "1 viewers" in refused.json()["error"]["message"]


async def test_an_engine_that_cannot_be_watched_refuses_viewers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = EchoEngine()

    def refuse() -> None:
        raise UnavailableError("not now")

    async with client_of(engine) as client:
        with monkeypatch.context() as patch:
            patch.setattr(engine, "watch_steps", refuse)
            assert (await client.get("/status/stream")).status_code == 503
        async with states(client) as seen:
            assert (await anext(seen))["ready"]


async def test_a_viewer_that_reads_slowly_sees_the_newest_state() -> None:
    viewer = live_status.Viewer()
    for state in ("1", "2", "3"):
        viewer.show(state)
    assert await anext(viewer) == "3"
    viewer.end()
    assert [state async for state in viewer] == []
