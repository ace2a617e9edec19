"""`coordinator-cli up` as a process tree: how it starts, and every way that it ends."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from stagecoach.client import Client, CoordinatorStatus, StageStatus
from tests.terminal import Terminal
from tests.tiny_models import tiny_model

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 300

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model("llama", tmp_path_factory.mktemp("model"))


COMMAND = (sys.executable, "-m", "coordinator.cli", "up", "--model")
SMALL = ("--threads", "1", "--kv-memory", "1MiB")


@contextmanager
def up(model: Path, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    with subprocess.Popen(
        [*COMMAND, str(model), *SMALL, *arguments],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.terminate()


def read_ready(process: "subprocess.Popen[str]") -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, last_line(process)
    ready: dict[str, Any] = json.loads(line)
    return ready


def pids_of(ready: dict[str, Any]) -> list[int]:
    return [ready["pid"], *(stage["pid"] for stage in ready["stages"])]


def cached_tokens(client: Client) -> list[int]:
    """Cached tokens of a prompt, of the same one again, and of the same one with a salt."""
    return [
        client.complete([*range(3, 38)], max_tokens=2, cache_salt=salt).usage.num_cached_tokens
        for salt in (None, None, "salt")
    ]


def check_http(ready: dict[str, Any]) -> None:
    """Checks that both doors lead to the same coordinator; its model has no tokenizer."""
    command = (sys.executable, "-m", "coordinator.cli", "status", "--json")
    shown = subprocess.run(
        [*command, "--coordinator", ready["grpc"]], cwd=ROOT, check=True, capture_output=True
    )
    with httpx2.Client(base_url=f"http://{ready['http']}") as http, Client(ready["grpc"]) as grpc:
        assert http.get("/status").json().keys() == json.loads(shown.stdout).keys()
        assert http.get("/status").json()["pid"] == ready["pid"]
        body = {"prompt": [1, 2, 3], "max_tokens": 4, "temperature": 0, "ignore_eos": True}
        [choice] = http.post("/v1/completions", json=body).json()["choices"]
        done = grpc.complete([1, 2, 3], max_tokens=4, ignore_eos=True)
        assert choice["token_ids"] == list(done.token_ids)
        refused = http.post("/v1/completions", json={"prompt": "text"})
        assert refused.status_code == 400
        assert "no tokenizer" in refused.json()["error"]["message"]


def check_gone(pids: list[int]) -> None:
    processes = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
    _, alive = psutil.wait_procs(processes, timeout=DEADLINE_S)
    assert alive == []


def last_line(process: "subprocess.Popen[str]") -> str:
    _, stderr = process.communicate(timeout=DEADLINE_S)
    assert "Traceback" not in stderr
    return str(stderr.splitlines()[-1])


def test_a_cluster_of_uneven_stages_serves_and_stops_on_ctrl_c(model: Path) -> None:
    arguments = ("--layers", "0:1", "--layers", "1:6", "--grpc-port", "0", "--json")
    with up(model, *arguments) as process:
        ready = read_ready(process)
        assert [stage["layers"] for stage in ready["stages"]] == [[0, 1], [1, 6]]
        with Client(ready["grpc"]) as client:
            assert len(client.complete([1, 2, 3], max_tokens=4, ignore_eos=True).token_ids) == 4
            assert cached_tokens(client) == [0, 32, 0]
        check_http(ready)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=DEADLINE_S)
        assert (process.returncode, stdout) == (0, "")
        for name in ("stage 0 (layers 0:1)", "stage 1 (layers 1:6)"):
            assert f"{name}: " in stderr  # how far its loading was
        check_gone(pids_of(ready))


def stages_when(
    client: Client, condition: Callable[[CoordinatorStatus], bool]
) -> tuple[StageStatus, ...]:
    deadline_s = time.monotonic() + DEADLINE_S
    while not condition(status := client.status()):
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    return status.stages


def fork_server_of(process: "subprocess.Popen[str]") -> psutil.Process:
    (found,) = (
        child
        for child in psutil.Process(process.pid).children()
        if "stagecoach.process.fork_server" in child.cmdline() and child.name() != "stage_server"
    )
    return found


@pytest.mark.parametrize("is_forked_anew", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_stage_that_dies_is_started_again_and_its_requests_go_on(
    model: Path, *, is_forked_anew: bool
) -> None:
    with up(model, "--stages", "2", "--grpc-port", "0", "--json") as process:
        ready = read_ready(process)
        first, victim = (stage["pid"] for stage in ready["stages"])
        if is_forked_anew:
            fork_server_of(process).kill()
        with Client(ready["grpc"]) as client:
            expected = client.complete([1, 2, 3], max_tokens=200, ignore_eos=True).token_ids
            tokens: list[int] = []
            for event in client.generate([1, 2, 3], max_tokens=200, ignore_eos=True):
                tokens += event.token_ids
                if len(tokens) == 5:
                    os.kill(victim, signal.SIGKILL)
            assert tokens == list(expected)
            stages = stages_when(client, lambda status: status.ready)
        pids = [stage.pid for stage in stages]
        assert pids[0] == first
        assert pids[1] != victim
        assert [stage.address for stage in stages] == [
            stage["address"] for stage in ready["stages"]
        ]
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=DEADLINE_S)
        (line,) = [line for line in stderr.splitlines() if "starts again in 0.2 s" in line]
        assert "stage 1 (layers 3:6) ended with signal SIGKILL" in line
        check_gone([*pids_of(ready), *filter(None, pids)])


def test_every_stage_may_have_two_servers_and_killing_the_command_leaves_none(model: Path) -> None:
    arguments = ("--stages", "1", "--replicas", "2", "--grpc-port", "0", "--json")
    with up(model, *arguments) as process:
        ready = read_ready(process)
        assert [stage["layers"] for stage in ready["stages"]] == [[0, 6]] * 2
        with Client(ready["grpc"]) as client:
            stages = client.status().stages
            assert sorted((stage.index, stage.pipeline) for stage in stages) == [(0, 0), (0, 1)]
            assert len(client.complete([1, 2, 3], max_tokens=4, ignore_eos=True).token_ids) == 4
        pids = [*pids_of(ready), fork_server_of(process).pid]
        process.kill()
        check_gone(pids)


def test_a_coordinator_that_dies_is_named_and_everything_stops(model: Path) -> None:
    with up(model, "--stages", "1", "--grpc-port", "0", "--json") as process:
        ready = read_ready(process)
        os.kill(ready["pid"], signal.SIGKILL)
        line = last_line(process)
        assert process.returncode == 1
        assert line.startswith("coordinator-cli: coordinator ended with signal SIGKILL")
        check_gone(pids_of(ready))


def test_a_terminal_that_closes_lets_running_requests_finish(model: Path) -> None:
    command = [*COMMAND, str(model), *SMALL, "--stages", "1", "--grpc-port", "0", "--json", "-v"]
    with Terminal(command, columns=400) as terminal:
        terminal.expect('{"grpc": ')
        terminal.expect("}\n")
        found = re.search(r'{"grpc": .*}', terminal.shown)
        assert found is not None
        ready = json.loads(found[0])
        with Client(ready["grpc"]) as client:
            events = client.generate([1, 2, 3], max_tokens=200, ignore_eos=True)
            tokens = list(next(events).token_ids)
            terminal.close()
            for event in events:
                tokens += event.token_ids
        assert len(tokens) == 200
        assert terminal.process.wait(DEADLINE_S) == 0
        check_gone(pids_of(ready))


def test_what_is_turned_off_is_not_there_and_the_end_of_stdin_stops_everything(model: Path) -> None:
    """Each does so when asked to."""
    arguments = ("--stages", "1", "--grpc-port", "0", "--json", "--exit-with-parent")
    with up(model, *arguments, "--no-prefix-cache", "--no-http") as process:
        ready = read_ready(process)
        assert ready["http"] is None
        with Client(ready["grpc"]) as client:
            assert cached_tokens(client) == [0, 0, 0]
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(DEADLINE_S) == 0
        check_gone(pids_of(ready))


def test_several_models_have_their_own_stages_and_one_coordinator(
    model: Path, tmp_path: Path
) -> None:
    other = tiny_model("mistral", tmp_path)
    arguments = ("--model", str(other), "--stages", "2", "--grpc-port", "0", "--json")
    with up(model, *arguments, "--metrics-port", "0") as process:
        ready = read_ready(process)
        assert [stage["model"] for stage in ready["stages"]] == [model.name] * 2 + [other.name] * 2
        metrics = [ready["metrics"], *(stage["metrics"] for stage in ready["stages"])]
        assert len(set(metrics)) == 5
        with Client(ready["grpc"]) as client:
            status = client.status()
            assert status.ready
            of_models = [[stage.pid for stage in one.stages] for one in status.models]
            assert of_models == [
                [stage["pid"] for stage in ready["stages"][:2]],
                [stage["pid"] for stage in ready["stages"][2:]],
            ]
            outputs = [
                client.complete([5, 6, 7], model=name, max_tokens=8, ignore_eos=True).token_ids
                for name in (model.name, other.name)
            ]
            assert outputs[0] != outputs[1]
        process.terminate()
        assert process.wait(DEADLINE_S) == 0
        check_gone(pids_of(ready))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--layers", "0:6"), "--layers are of one model"),
        (("--stages", "1"), "--served-model-name 'llama' is of two models"),
        (
            ("--stages", "1", "--served-model-name", "a"),
            "--served-model-name is given 1 times, must be once for each of 2 models",
        ),
    ],
)
def test_several_models_need_names_and_stages_of_their_own(
    model: Path, arguments: tuple[str, ...], message: str
) -> None:
    with up(model, "--model", str(model), *arguments, "--grpc-port", "0") as process:
        line = last_line(process)
        assert process.returncode == 2
        assert message in line


def test_an_option_that_a_stage_refuses_exits_2_and_says_so(model: Path) -> None:
    with up(model, "--stages", "1", "--grpc-port", "0", "--dtype", "int3") as process:
        line = last_line(process)
        assert process.returncode == 2
        assert "stage 0 (layers 0:6)" in line
        assert "int3" in line


@pytest.mark.parametrize(
    "other", ["--http-port", pytest.param("--grpc-port", marks=pytest.mark.slow)]
)
def test_a_port_in_use_exits_with_one_clear_line(model: Path, other: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        option = "--grpc-port" if other == "--http-port" else "--http-port"
        with up(model, "--stages", "1", option, str(port), other, "0") as process:
            line = last_line(process)
            assert process.returncode == 1
            assert f"cannot listen on 127.0.0.1:{port}" in line


def test_ctrl_c_while_starting_leaves_no_process(model: Path) -> None:
    with up(model, "--stages", "2", "--grpc-port", "0") as process:
        assert process.stderr is not None
        assert "starting 2 stages" in process.stderr.readline()
        children = psutil.Process(process.pid).children()
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE_S) == 0
        check_gone([child.pid for child in children])
