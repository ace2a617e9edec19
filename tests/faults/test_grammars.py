"""G1 to G5: grammars that crash or occupy their processes, beside streams that must not notice.

What a client sends reaches native code: a grammar may end its process, or keep it busy for ever.
That costs the request that brought it. Whoever runs beside it gets the same tokens as ever.
"""

import asyncio
import json
import os
import signal
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from stagecoach.client import AsyncClient
from tests.faults.http_wire import answer, statuses
from tests.faults.malformed_http import HostileRequest
from tests.faults.oracle import Oracle
from tests.faults.reference import Continuation
from tests.faults.test_up import arguments, up
from tests.faults.traffic import Traffic
from tests.faults.waiting import eventually

STREAMS_END_S = 240.0
REFUSALS = frozenset({400, 429, 503, 504})
NUM_SHARING = 6


def _chain(num_links: int, link: str) -> Mapping[str, object]:
    """Definitions that refer to each other, one inside the other."""
    links: dict[str, object] = {}
    for index in range(num_links):
        inner = {"$ref": f"#/$defs/{index + 1}"}
        links[str(index)] = {link: {"x": inner} if link == "properties" else inner}
    return {"$ref": "#/$defs/0", "$defs": {**links, str(num_links): {"type": "null"}}}


def _rules(num_links: int) -> str:
    return (
        "start: r0\n"
        + "".join(f"r{i}: r{i + 1}\n" for i in range(num_links))
        + (f'r{num_links}: "a"\n')
    )


CRASHING: Sequence[Mapping[str, object]] = (
    {"json": {"type": "integer", "minimum": -(2**63), "maximum": -(2**63) + 2}},
    {"json": _chain(1000, "properties")},
    {"json": _chain(1000, "items")},
    {"grammar": _rules(3500)},
)
ENDLESS: Sequence[Mapping[str, object]] = tuple(
    {
        "json": {
            "title": str(index),
            "anyOf": [{"type": "integer", "multipleOf": n} for n in (300007, 300017)],
        }
    }
    for index in range(12)
)
USUAL = {"json": {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}}


def completion(form: Mapping[str, object]) -> HostileRequest:
    """A request for an output of a form."""
    body = json.dumps(
        {"prompt": [5, 6, 7], "max_tokens": 16, "temperature": 0, "structured_outputs": form}
    ).encode()
    head = (
        b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
        b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
    )
    return HostileRequest(data=head + body, is_whole=True)


async def attack(http: str, forms: Sequence[Mapping[str, object]]) -> Counter[int]:
    """Sends all at once; each is answered, or refused in words."""
    answers = await asyncio.gather(*(answer(http, completion(form)) for form in forms))
    counts: Counter[int] = Counter()
    for data in answers:
        (status,) = statuses(data)
        assert status == 200 or status in REFUSALS, data[-500:]
        if status != 200:
            error = json.loads(data.partition(b"\r\n\r\n")[2])["error"]
            assert error["message"], data
        counts[status] += 1
    return counts


async def attack_beside(
    client: AsyncClient, http: str, texts: list[Continuation], *, num_rounds: int
) -> Traffic:
    """Attacks in a loop while streams run; a usual grammar is served all the while."""
    traffic = Traffic.start(client, texts, num_tokens=300)
    await traffic.until_each_has(1)
    for _ in range(num_rounds):
        endless = asyncio.create_task(attack(http, ENDLESS))
        counts = await attack(http, CRASHING)
        assert counts[400] >= 1
        assert await attack(http, [USUAL]) == {200: 1}
        assert (await endless)[200] == 0
    await traffic.ended(STREAMS_END_S)
    return traffic


def children(process: psutil.Process) -> list[psutil.Process]:
    """Those that have not ended; none of one that has."""
    with suppress(psutil.NoSuchProcess):
        return [one for one in process.children() if not has_ended(one)]
    return []


def has_ended(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def is_fork_server(process: psutil.Process) -> bool:
    """True for what compiled grammars are forked from; what it left behind looks the same."""
    with suppress(psutil.NoSuchProcess, ProcessLookupError):
        leads = os.getsid(process.pid) == process.pid
        return leads and "coordinator.constraint.grammar_job" in process.cmdline()
    return False


def fork_servers(coordinator_pid: int) -> list[psutil.Process]:
    """The process that compiled grammars are forked from."""
    return [one for one in children(psutil.Process(coordinator_pid)) if is_fork_server(one)]


def followers(coordinator_pid: int) -> list[psutil.Process]:
    """The processes that follow outputs of grammars: grandchildren of the fork server."""
    return [
        follower
        for server in fork_servers(coordinator_pid)
        for template in children(server)
        for follower in children(template)
    ]


@pytest.mark.timeout(300)
async def test_g1_grammars_that_crash_or_never_end_disturb_no_stream(oracle: Oracle) -> None:
    process_id = oracle.cluster.coordinator.pid
    traffic = await attack_beside(oracle.client, oracle.cluster.http, oracle.texts, num_rounds=1)
    oracle.check_streams(traffic)
    assert oracle.cluster.coordinator.pid == process_id
    assert oracle.cluster.coordinator.returncode is None


ENDINGS = (
    *((number, "outputs") for number in (signal.SIGSEGV, signal.SIGKILL)),
    *((signal.SIGKILL, which) for which in ("templates", "fork servers")),
    *((number, "all") for number in (signal.SIGKILL, signal.SIGHUP)),
)
QUICK_ENDINGS = ((signal.SIGSEGV, "outputs"), (signal.SIGKILL, "all"))


def grammar_processes(coordinator_pid: int, which: str) -> list[psutil.Process]:
    """Those of a kind: fork servers, templates below them, outputs below these."""
    servers = fork_servers(coordinator_pid)
    templates = [template for server in servers for template in children(server)]
    outputs = followers(coordinator_pid)
    kinds = {"fork servers": servers, "templates": templates, "outputs": outputs}
    return [*servers, *templates, *outputs] if which == "all" else kinds[which]


def zombies(coordinator_pid: int) -> list[psutil.Process]:
    """Of the coordinator's children."""
    return [
        child
        for child in psutil.Process(coordinator_pid).children()
        if child.is_running() and has_ended(child)
    ]


@pytest.mark.parametrize(
    ("number", "which"),
    [
        pytest.param(*ending, marks=() if ending in QUICK_ENDINGS else pytest.mark.slow)
        for ending in ENDINGS
    ],
    ids=[f"{number.name} to {which}" for number, which in ENDINGS],
)
async def test_g2_outputs_whose_process_dies_under_them_are_as_if_it_had_not(
    oracle: Oracle, number: signal.Signals, which: str
) -> None:
    """They share it: whose output it was that ended it, nobody can tell."""
    title = f"{number.name} to {which}"  # so that it is compiled by a fork server that lives
    form = {"title": title, "type": "array", "items": {"type": "integer"}, "minItems": 40}
    schema = json.dumps(form)

    async def complete(index: int) -> tuple[int, ...]:
        done = await oracle.client.complete(
            oracle.texts[index].prompt(9), max_tokens=60, temperature=0.0, json_schema=schema
        )
        return done.token_ids

    alone = [await complete(index) for index in range(NUM_SHARING)]
    running = [asyncio.create_task(complete(index)) for index in range(NUM_SHARING)]
    process_id = oracle.cluster.coordinator.pid
    await eventually(lambda: len(followers(process_id)) > 0, within_s=30, what="outputs followed")
    for process in grammar_processes(process_id, which):
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)
    assert await asyncio.gather(*running) == alone
    await eventually(lambda: zombies(process_id) == [], within_s=30, what="no zombie is left")


async def test_g3_a_fork_server_that_is_killed_leaves_no_zombies(oracle: Oracle) -> None:
    """Its orphans are the coordinator's then, whatever the first process of the machine does."""
    coordinator = psutil.Process(oracle.cluster.coordinator.pid)
    assert await attack(oracle.cluster.http, [{"regex": "new|one"}]) == {200: 1}
    (server,) = fork_servers(coordinator.pid)
    orphans = server.children(recursive=True)
    assert orphans
    server.kill()
    await eventually(lambda: not server.is_running(), within_s=30, what="the server is gone")
    others = [{"regex": f"[ab]{{{index}}}"} for index in range(1, 70)]  # push all others out
    assert await attack(oracle.cluster.http, others[:35]) == {200: 35}
    assert await attack(oracle.cluster.http, others[35:]) == {200: 34}
    await eventually(
        lambda: not any(one.is_running() for one in orphans), within_s=30, what="orphans are gone"
    )


@pytest.mark.timeout(300)
async def test_g5_streams_whose_processes_are_killed_again_and_again_go_on(oracle: Oracle) -> None:
    form = json.dumps({"type": "array", "items": {"type": "number"}, "minItems": 100})
    process_id = oracle.cluster.coordinator.pid

    async def complete() -> tuple[int, ...]:
        done = await oracle.client.complete(
            oracle.texts[0].prompt(9), max_tokens=200, temperature=0.0, json_schema=form
        )
        return done.token_ids

    alone = await complete()
    running = asyncio.gather(*(complete() for _ in range(NUM_SHARING)))
    for _ in range(4):
        await eventually(
            lambda: running.done() or len(followers(process_id)) > 0,
            within_s=30,
            what="outputs followed",
        )
        for process in grammar_processes(process_id, "all"):
            with suppress(psutil.NoSuchProcess):
                process.kill()
    assert await running == [alone] * NUM_SHARING
    await eventually(lambda: zombies(process_id) == [], within_s=30, what="no zombie is left")


@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_g4_the_whole_command_stands_what_an_attacker_sends(
    model: Path, texts: list[Continuation]
) -> None:
    with up(model, *arguments(2, "8MiB"), "--http-port", "0") as process:
        assert process.stdout is not None
        ready = json.loads(await asyncio.to_thread(process.stdout.readline))
        async with AsyncClient(ready["grpc"]) as client:
            http = ready["http"].removeprefix("http://")
            traffic = await attack_beside(client, http, texts, num_rounds=3)
        for stream in traffic.streams:
            assert stream.is_complete, stream.error
        assert process.poll() is None
