"""The `stage-server` command as a process of its own, with a real model."""

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from queue import SimpleQueue
from typing import IO

import grpc
import pytest
from typer.testing import CliRunner

from stage_server.process.command import app
from stagecoach.contract.errors import UnavailableError
from stagecoach.contract.protocol import PROTOCOL_VERSION
from stagecoach.contract.status import from_rpc_error
from stagecoach.v1 import stage_pb2, stage_pb2_grpc
from stagecoach.version import __version__

COMMAND = [sys.executable, "-m", "stage_server"]
FLAGS = ["--model", "demo", "--layers", "0:2", "--kv-memory", "16MiB", "--listen", "127.0.0.1:0"]
DEADLINE_S = 300.0


@contextmanager
def process(*flags: str) -> Iterator[subprocess.Popen[str]]:
    """A stage server with pipes to it; killed at the end if it still runs."""
    with subprocess.Popen(
        [*COMMAND, *FLAGS, *flags],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        try:
            yield child
        finally:
            child.kill()


def ready(child: subprocess.Popen[str]) -> str:
    """Waits until the process is ready; returns its address."""
    line = _stream(child.stdout).readline()
    assert line, _stream(child.stderr).read()
    message = json.loads(line)
    assert message["layers"] == [0, 2]
    assert message["pid"] == child.pid
    return str(message["address"])


def connect(address: str) -> grpc.Channel:
    return grpc.insecure_channel(address, options=[("grpc.max_receive_message_length", 2**24)])


def open_stream(
    channel: grpc.Channel, requests: list[stage_pb2.ForwardRequest]
) -> Iterator[stage_pb2.ForwardResponse]:
    """Opens a Forward stream on a real stage, sends `requests`, and leaves it open."""
    stub = stage_pb2_grpc.StageServiceStub(channel)
    info = stub.GetInfo(stage_pb2.GetInfoRequest(), timeout=DEADLINE_S)
    opening = stage_pb2.OpenStream(
        protocol_version=PROTOCOL_VERSION,
        fingerprint=info.fingerprint,
        layers=info.layers,
        coordinator_id="tester",
        epoch=1,
    )

    messages: SimpleQueue[stage_pb2.ForwardRequest] = SimpleQueue()
    for request in (stage_pb2.ForwardRequest(open=opening), *requests):
        messages.put(request)
    # An iterator that never ends keeps the stream open.
    responses = stub.Forward(iter(messages.get, None), timeout=DEADLINE_S)
    assert next(responses).WhichOneof("payload") == "opened"
    return responses


def prefill(num_tokens: int) -> stage_pb2.ForwardRequest:
    piece = stage_pb2.SequenceSlice(kv_slot=0, num_tokens=num_tokens)
    ids = stage_pb2.TokenIds(ids=[1] * num_tokens)
    return stage_pb2.ForwardRequest(micro_batch=stage_pb2.MicroBatch(slices=[piece], token_ids=ids))


def test_it_says_when_it_is_ready_computes_and_ends_well_on_sigterm() -> None:
    with process("--json") as child, connect(ready(child)) as channel:
        responses = open_stream(channel, [prefill(3)])
        result = next(responses).result
        assert list(result.hidden_states.shape) == [3, 576]
        assert result.timings.compute_ns > 0

        child.send_signal(signal.SIGTERM)
        with pytest.raises(grpc.RpcError) as caught:
            next(responses)
        assert isinstance(from_rpc_error(caught.value), UnavailableError)
        out, err = child.communicate(timeout=DEADLINE_S)
        assert child.returncode == 0
        assert out == ""
        assert "Traceback" not in err
        for event in (
            *("listening", "load started", "load finished", "stream opened"),
            *("stream closed", "draining", "stopped"),
        ):
            assert event in err


def test_it_ends_when_the_process_that_started_it_is_killed() -> None:
    parent_script = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, stdout=subprocess.PIPE)\n"
        "print(child.stdout.readline().decode(), flush=True)\n"
        "time.sleep(600)\n"
    )
    command = [*COMMAND, *FLAGS, "--json", "--exit-with-parent"]
    with subprocess.Popen(
        [sys.executable, "-c", parent_script, *command], stdout=subprocess.PIPE, text=True
    ) as parent:
        pid = json.loads(_stream(parent.stdout).readline())["pid"]
        parent.kill()
        deadline_s = time.monotonic() + 10
        while _is_alive(pid):
            assert time.monotonic() < deadline_s, "the stage outlived its parent"
            time.sleep(0.05)


def test_sigterm_while_loading_ends_it_well() -> None:
    with process() as child:
        assert "listening" in _stream(child.stderr).readline()
        child.send_signal(signal.SIGTERM)
        child.communicate(timeout=DEADLINE_S)
        assert child.returncode == 0


def test_the_first_signal_lets_work_finish_and_the_second_does_not() -> None:
    with process("--json") as child, connect(ready(child)) as channel:
        responses = open_stream(channel, [prefill(2048)] * 8)
        next(responses)
        child.send_signal(signal.SIGTERM)
        child.send_signal(signal.SIGHUP)  # of a terminal that closes meanwhile
        assert next(responses).result.timings.compute_ns > 0
        child.send_signal(signal.SIGTERM)
        assert child.wait(timeout=2) == -signal.SIGTERM


def test_a_taken_port_is_said_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        outcome = run_command("--model", "demo", "--layers", "0:2", "--listen", address)
    assert_fails_in_one_line(outcome, f"cannot listen on {address}")


def test_a_model_that_is_not_there_is_said_in_one_line() -> None:
    outcome = run_command("--model", "./no-such-model", "--layers", "0:2")
    assert_fails_in_one_line(outcome, "no-such-model")


def test_layers_that_the_model_does_not_have_are_said_in_one_line() -> None:
    outcome = run_command("--model", "demo", "--layers", "29:31")
    assert_fails_in_one_line(outcome, "29:31")


@pytest.mark.parametrize(
    ("flags", "culprit"),
    [
        (["--layers", "0:2"], "--model"),
        (["--model", "demo"], "--layers"),
        (["--model", "demo", "--layers", "2:2"], "2:2"),
        (["--model", "demo", "--layers", "0-2"], "0-2"),
        (["--model", "demo", "--layers", "0:2", "--listen", "nowhere"], "nowhere"),
        (["--model", "demo", "--layers", "0:2", "--kv-memory", "lots"], "lots"),
        (["--model", "demo", "--layers", "0:2", "--dtype", "int3"], "int3"),
        (["--model", "demo", "--layers", "0:2", "--device", "tpu"], "tpu"),
        (["--model", "demo", "--layers", "0:2", "--max-num-seqs", "0"], "--max-num-seqs"),
        (["--model", "demo", "--layers", "0:2", "--threads", "x"], "--threads"),
        (["--model", "demo", "--layers", "0:2", "--log-level", "loud"], "loud"),
        (["--model", "demo", "--layers", "0:2", "--surprise"], "--surprise"),
    ],
)
def test_bad_usage_exits_with_2_and_names_the_culprit(flags: list[str], culprit: str) -> None:
    result = CliRunner().invoke(app, flags)
    assert result.exit_code == 2
    assert culprit in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("size", ["0", "0GiB", "0.0001B"])
def test_a_device_without_memory_is_refused(size: str) -> None:
    flags = ["--model", "demo", "--stage", "1/2", "--stage-memory", f"{size},8GiB"]
    result = CliRunner().invoke(app, flags)
    assert result.exit_code == 2
    assert f"--stage-memory '{size}' must be above 0" in result.stderr


@pytest.mark.parametrize("flags", [["--stage", "1/2"], ["--layers", "0:2"]])
def test_whatever_fails_while_the_model_is_opened_is_one_line(
    flags: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(spec: str) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(import_module("stagecoach.model_files.open_model"), "_opened", opened)
    result = CliRunner().invoke(app, ["--model", "demo", *flags])
    assert result.exit_code == 1
    assert result.stderr == (
        "stage-server: model 'demo' cannot be opened: failed unexpectedly: division by zero"
        " (ZeroDivisionError)\n"
    )


def test_whatever_fails_before_the_model_is_opened_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def split(*_: object, **__: object) -> None:
        raise KeyError

    monkeypatch.setattr("stage_server.process.place.split_layers", split)
    result = CliRunner().invoke(app, ["--model", "demo", "--stage", "1/2"])
    assert result.exit_code == 1
    assert result.stderr == ("stage-server: failed unexpectedly: no reason is given (KeyError)\n")


def test_flags_may_come_from_the_environment() -> None:
    result = CliRunner().invoke(app, env={"STAGECOACH_MODEL": "demo", "STAGECOACH_LAYERS": "7:3"})
    assert result.exit_code == 2
    assert "7:3" in result.stderr


def test_help_and_version_need_no_torch() -> None:
    script = (
        "import sys\n"
        "from stage_server.process.command import app\n"
        "app(['--version'], standalone_mode=False)\n"
        "assert 'torch' not in sys.modules and 'grpc' not in sys.modules\n"
    )
    outcome = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=DEADLINE_S
    )
    assert outcome.stdout == f"stage-server {__version__}\n"
    assert outcome.returncode == 0
    assert CliRunner().invoke(app, ["--help"]).exit_code == 0


def run_command(*flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *flags], capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )


def assert_fails_in_one_line(outcome: subprocess.CompletedProcess[str], text: str) -> None:
    assert outcome.returncode == 1
    assert outcome.stdout == ""
    assert len(outcome.stderr.splitlines()) == 1
    assert outcome.stderr.startswith("stage-server: ")
    assert text in outcome.stderr


def _stream(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe


def _is_alive(pid: int) -> bool:
    """False for a zombie too: nobody reaps an orphan in a container."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        ("time.sleep(1000)", "the model thread hangs"),
        ("raise DeviceLostError('the device is gone')", "the device is lost"),
    ],
)
def test_a_stage_that_is_past_help_ends_with_one_line_for_its_supervisor(
    failure: str, message: str
) -> None:
    script = f"""
import time
from stage_server.compute import torch_engine
from stage_server.__main__ import main
from stage_server.core.engine import DeviceLostError
real_warm_up = torch_engine.TorchEngine.warm_up
def fail(*_):
    {failure}
def warm_up(engine):
    real_warm_up(engine)
    torch_engine.TorchEngine.launch = fail
torch_engine.TorchEngine.warm_up = warm_up
main()
"""
    flags = [*FLAGS, "--json", "--hang-timeout-s", "0.3"]
    with subprocess.Popen(
        [sys.executable, "-c", script, *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        try:
            with connect(ready(child)) as channel:
                batch = stage_pb2.MicroBatch(
                    micro_batch_id=1,
                    slices=[stage_pb2.SequenceSlice(kv_slot=0, start_position=0, num_tokens=1)],
                    token_ids=stage_pb2.TokenIds(ids=[5]),
                )
                answers = open_stream(channel, [stage_pb2.ForwardRequest(micro_batch=batch)])
                with pytest.raises(grpc.RpcError):
                    next(answers)
                assert child.wait(DEADLINE_S) == 1
            lines = _stream(child.stderr).read().splitlines()
            assert message in lines[-1]
            assert lines[-1].startswith("stage-server: ")
        finally:
            child.kill()
