"""`coordinator-cli generate` and `status` as processes, against a real server."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.core.events import TokenLogprobs
from coordinator.core.grammar import Grammar, GrammarKind
from coordinator.core.request_spec import TokenPrompt
from coordinator.core.sampling_params import SamplingParams
from stagecoach.contract.errors import QueueFullError
from tests.contract.echo_engine import EchoEngine
from tests.contract.test_generation_client import BackgroundServer, until

DEADLINE_S = 120.0

ROOT = Path(__file__).resolve().parents[2]
COMMAND = (sys.executable, "-m", "coordinator.cli")


@pytest.fixture
def server() -> Iterator[BackgroundServer]:
    with BackgroundServer(EchoEngine()) as server:
        yield server


def run_cli(
    server: BackgroundServer, *arguments: str, stdin: bytes | None = None
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*COMMAND, *arguments],
        check=False,
        cwd=ROOT,
        env={**os.environ, "STAGECOACH_COORDINATOR": server.address},
        input=stdin,
        capture_output=True,
        timeout=DEADLINE_S,
    )


def start_cli(server: BackgroundServer, *arguments: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [*COMMAND, *arguments],
        cwd=ROOT,
        env={**os.environ, "STAGECOACH_COORDINATOR": server.address},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def check_one_line(stderr: bytes, *parts: str) -> None:
    text = stderr.decode()
    assert text.startswith("coordinator-cli: ")
    assert text.count("\n") == 1
    for part in parts:
        assert part in text


def test_generate_streams_text_and_ends_with_a_newline(server: BackgroundServer) -> None:
    result = run_cli(server, "generate", "né", "--max-tokens", "6")
    assert (result.returncode, result.stdout.decode(), result.stderr) == (0, "néné\n", b"")


def test_generate_prints_exactly_one_json_object(server: BackgroundServer) -> None:
    result = run_cli(server, "generate", "abc", "--max-tokens", "4", "--json")
    assert result.returncode == 0
    answer = json.loads(result.stdout)
    assert set(answer) == {"text", "token_ids", "finish_reason", "usage", "timings"}
    assert (answer["text"], answer["token_ids"]) == ("abca", [97, 98, 99, 97])
    assert answer["finish_reason"] == "length"
    assert answer["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 4,
        "cached_tokens": 2,
        "total_tokens": 7,
    }
    timings = answer["timings"]
    assert timings["ttft_s"] == pytest.approx(0.005)
    assert timings["tokens_per_s"] == pytest.approx(3 / 0.1)
    assert [stage["compute_ms"] for stage in timings["stages"]] == [40.0, 50.0]
    assert set(timings["stages"][0]) == {"queue_ms", "compute_ms", "serialize_ms", "wire_ms"}


def test_a_trace_tells_the_steps_of_the_request(server: BackgroundServer, tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    result = run_cli(server, "generate", "abc", "--max-tokens", "10", "--trace", str(path))
    assert (result.returncode, result.stderr) == (0, b"")
    trace = json.loads(path.read_text())
    steps = [event for event in trace["traceEvents"] if event["name"].startswith("micro-batch ")]
    prefills = [event["args"]["prefill_tokens"] for event in steps]
    assert prefills == [3] + [0] * 9


def test_a_trace_that_cannot_be_written_is_bad_usage(
    server: BackgroundServer, tmp_path: Path
) -> None:
    for path in (tmp_path, tmp_path / "none" / "trace.json"):
        result = run_cli(server, "generate", "abc", "--trace", str(path))
        assert (result.returncode, result.stdout) == (2, b"")
        check_one_line(result.stderr, "--trace", "cannot be written")
    assert server.engine.specs == []


def test_the_default_is_256_tokens(server: BackgroundServer) -> None:
    run_cli(server, "generate", "abc")
    (spec,) = server.engine.specs
    assert spec.max_tokens == 256


def test_every_flag_reaches_the_engine(server: BackgroundServer) -> None:
    result = run_cli(
        server,
        "generate",
        *("--prompt-token-ids", "1,2,3", "--max-tokens", "2", "--min-tokens", "1"),
        *("--temperature", "0.5"),
        *("--top-p", "0.25", "--top-k", "7", "--min-p", "0.125", "--seed", "9"),
        *("--repetition-penalty", "1.5", "--presence-penalty", "0.5"),
        *("--frequency-penalty", "0.75", "--stop", "x", "--stop", "y"),
        *("--stop-token-ids", "4,5", "--ignore-eos"),
        *("--regex", "a+", "--logprobs", "3", "--json"),
    )
    assert result.returncode == 0, result.stderr
    (spec,) = server.engine.specs
    assert spec.prompt == TokenPrompt(token_ids=(1, 2, 3))
    assert spec.sampling == SamplingParams(
        temperature=0.5,
        top_p=0.25,
        top_k=7,
        min_p=0.125,
        seed=9,
        repetition_penalty=1.5,
        presence_penalty=0.5,
        frequency_penalty=0.75,
    )
    assert (spec.stop, spec.stop_token_ids, spec.ignore_eos) == (("x", "y"), (4, 5), True)
    assert (spec.max_tokens, spec.min_tokens) == (2, 1)
    assert (spec.grammar, spec.logprobs) == (Grammar(kind=GrammarKind.REGEX, text="a+"), 3)


def test_a_json_schema_comes_from_a_file(server: BackgroundServer, tmp_path: Path) -> None:
    path = tmp_path / "schema.json"
    path.write_text('{"type": "object"}\n')
    arguments = ("generate", "abc", "--max-tokens", "1", "--json-schema", str(path))
    assert run_cli(server, *arguments).returncode == 0
    (spec,) = server.engine.specs
    assert spec.grammar == Grammar(kind=GrammarKind.JSON_SCHEMA, text='{"type": "object"}')


def test_logprobs_are_printed_as_json(server: BackgroundServer) -> None:
    server.engine.logprobs = TokenLogprobs(-0.25, ((7, -0.125), (8, -2.5)))
    result = run_cli(server, "generate", "abc", "--max-tokens", "2", "--logprobs", "2", "--json")
    top = [{"token_id": 7, "logprob": -0.125}, {"token_id": 8, "logprob": -2.5}]
    assert json.loads(result.stdout)["logprobs"] == [{"logprob": -0.25, "top": top}] * 2


def test_output_options_that_make_no_sense_exit_2_with_one_line(
    server: BackgroundServer, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.json"
    bad.write_bytes(b"\xff")
    empty = tmp_path / "empty.json"
    empty.write_text("[1]")
    for options, part in (
        (("--logprobs", "2"), "--logprobs needs --json"),
        (("--logprobs", "21", "--json"), "logprobs is 21"),
        (("--json-schema", str(bad)), "is not UTF-8 text"),
        (("--json-schema", str(empty)), "must be an object or a boolean"),
        (("--json-schema", str(empty), "--regex", "a"), "--json-schema and --regex are both given"),
        (("--regex", ""), "--regex is empty"),
    ):
        result = run_cli(server, "generate", "abc", *options)
        assert (result.returncode, result.stdout) == (2, b""), options
        check_one_line(result.stderr, part)
    missing = run_cli(server, "generate", "abc", "--json-schema", str(tmp_path / "none.json"))
    assert missing.returncode == 1
    check_one_line(missing.stderr, "none.json")


@pytest.mark.parametrize("dash", [(), ("-",)])
def test_the_prompt_may_come_from_stdin(server: BackgroundServer, dash: tuple[str, ...]) -> None:
    result = run_cli(server, "generate", *dash, "--max-tokens", "2", stdin=b"hi\n")
    assert result.stdout == b"hi\n"


def test_the_prompt_may_come_from_a_file(server: BackgroundServer, tmp_path: Path) -> None:
    path = tmp_path / "prompt.txt"
    path.write_text("one\ntwo\n")
    result = run_cli(server, "generate", "--file", str(path), "--max-tokens", "7")
    assert result.stdout == b"one\ntwo\n"


def test_chat_sends_a_conversation(server: BackgroundServer) -> None:
    arguments = ("generate", "hi", "--chat", "--system", "Be brief.", "--max-tokens", "27")
    result = run_cli(server, *arguments)
    assert result.stdout == b"system: Be brief.\nuser: hi\n"


def test_stats_go_to_stderr_beside_the_text(server: BackgroundServer) -> None:
    result = run_cli(server, "generate", "abc", "--max-tokens", "2", "--stats")
    assert result.stdout == b"ab\n"
    table = result.stderr.decode()
    for word in ("queue", "compute", "serialize", "wire", "stage 0", "stage 1", "schedule"):
        assert word in table
    assert "first token after 5.0 ms" in table
    assert "4.00" in table  # 40 ms over 10 steps


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("--prompt-token-ids", "1,x"), "--prompt-token-ids"),
        (("--prompt-token-ids", ""), "--prompt-token-ids"),
        (("a", "--prompt-token-ids", "1"), "only one of"),
        (("a", "--file", "b"), "only one of"),
        (("",), "empty"),
        (("--prompt-token-ids", "1", "--chat"), "--chat"),
        (("a", "--system", "b"), "--chat"),
        (("a", "--max-tokens", "0"), "--max-tokens"),
        (("a", "--max-tokens", "-1"), "--max-tokens"),
        (("a", "--top-p", "1.5"), "--top-p"),
        (("a", "--temperature", "nan"), "temperature"),
        (("a", "--stop", ""), "stop"),
        (("--prompt-token-ids", "300"), "vocabulary"),
    ],
)
def test_bad_usage_exits_2_with_one_line(
    server: BackgroundServer, arguments: tuple[str, ...], part: str
) -> None:
    result = run_cli(server, "generate", *arguments, stdin=b"")
    assert (result.returncode, result.stdout) == (2, b"")
    check_one_line(result.stderr, part)


def test_stdin_that_is_not_text_is_bad_usage(server: BackgroundServer) -> None:
    result = run_cli(server, "generate", stdin=b"a\xff")
    assert result.returncode == 2
    check_one_line(result.stderr, "UTF-8", "byte 1")


@pytest.mark.parametrize("arguments", [("--max-tokens", "many"), ("--no-such-flag",), ("a", "b")])
def test_flags_that_do_not_parse_exit_2(
    server: BackgroundServer, arguments: tuple[str, ...]
) -> None:
    result = run_cli(server, "generate", *arguments)
    assert result.returncode == 2
    assert b"Traceback" not in result.stderr


def test_a_missing_file_exits_1_with_one_line(server: BackgroundServer, tmp_path: Path) -> None:
    result = run_cli(server, "generate", "--file", str(tmp_path / "none"))
    assert result.returncode == 1
    check_one_line(result.stderr, "none")


def test_an_error_of_the_coordinator_exits_1_with_one_line(server: BackgroundServer) -> None:
    server.engine.failure = QueueFullError("1024 requests wait")
    result = run_cli(server, "generate", "abc")
    assert (result.returncode, result.stdout) == (1, b"")
    check_one_line(result.stderr, "1024 requests wait")


def test_an_error_in_the_middle_keeps_the_text_so_far(server: BackgroundServer) -> None:
    server.engine.failure = QueueFullError("broken")
    server.engine.fail_after_tokens = 2
    result = run_cli(server, "generate", "abc")
    assert (result.returncode, result.stdout) == (1, b"ab\n")
    check_one_line(result.stderr, "broken")


def test_no_coordinator_exits_1_with_one_line(server: BackgroundServer) -> None:
    for command in (("generate", "abc"), ("status",)):
        result = run_cli(server, *command, "--coordinator", "127.0.0.1:1")
        assert result.returncode == 1
        check_one_line(result.stderr, "coordinator at 127.0.0.1:1")


def test_ctrl_c_cancels_the_request_and_exits_130(server: BackgroundServer) -> None:
    server.engine.delay_s = 0.01
    with start_cli(server, "generate", "abc", "--max-tokens", "4000") as process:
        assert process.stdout is not None
        process.stdout.read(3)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, stderr) == (130, b"")
    assert stdout.endswith(b"\n")
    until(lambda: not server.engine.running)


def test_a_reader_that_goes_away_cancels_the_request_quietly(server: BackgroundServer) -> None:
    server.engine.delay_s = 0.01
    with start_cli(server, "generate", "abc", "--max-tokens", "4000") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(3)
        process.stdout.close()
        assert process.wait(DEADLINE_S) == 141
        assert process.stderr.read() == b""
    until(lambda: not server.engine.running)


def test_status_prints_exactly_one_json_object(server: BackgroundServer) -> None:
    result = run_cli(server, "status", "--json")
    assert result.returncode == 0
    answer = json.loads(result.stdout)
    known, unknown = answer["stages"]
    assert known["index"] == 0
    assert known["address"] == "h:1"
    assert known["layers"] == [0, 2]
    assert (known["state"], known["device"], known["dtype"]) == (
        "ready",
        "cpu (1 threads)",
        "float16",
    )
    assert (known["pid"], known["kv_blocks_total"], known["kv_blocks_free"]) == (4321, 256, 80)
    assert (unknown["layers"], unknown["state"], unknown["pid"]) == (None, "lost", None)
    assert (answer["running"], answer["waiting"], answer["ready"]) == (0, 3, True)
    assert answer["kv_blocks_cached"] == 120
    assert (answer["prefix_query_tokens"], answer["prefix_hit_tokens"]) == (90, 30)
    assert (answer["draft_tokens"], answer["accepted_draft_tokens"]) == (40, 20)


def test_status_prints_a_table_for_people(server: BackgroundServer) -> None:
    result = run_cli(server, "status")
    text = result.stdout.decode()
    for word in ("echo: ready", "h:1", "0:2", "lost", "22 %", "3 waiting", "7.5 tokens/s"):
        assert word in text


def test_no_seed_may_be_written_as_over_http(server: BackgroundServer) -> None:
    assert run_cli(server, "generate", "abc", "--seed", "-1").returncode == 0
    assert server.engine.specs[-1].sampling.seed is None
