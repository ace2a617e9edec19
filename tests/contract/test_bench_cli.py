"""`coordinator-cli bench` as a process, against a real server: exit codes and refusals."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.core.request_spec import TokenPrompt
from tests.contract.echo_engine import EchoEngine
from tests.contract.test_generation_cli import check_one_line, run_cli
from tests.contract.test_generation_client import BackgroundServer

SHORT = ("--repeats", "2", "--prompt-tokens", "4", "--output-tokens", "8")


@pytest.fixture
def server() -> Iterator[BackgroundServer]:
    with BackgroundServer(EchoEngine(delay_s=0.001)) as server:
        yield server


def prompts(server: BackgroundServer) -> list[TokenPrompt]:
    return [spec.prompt for spec in server.engine.specs if isinstance(spec.prompt, TokenPrompt)]


def test_it_prints_one_json_object_and_progress_beside_it(server: BackgroundServer) -> None:
    result = run_cli(server, "bench", "--batch", "1,3", *SHORT, "--json")
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    assert answer["emulated"] is False
    assert [row["batch"] for row in answer["rows"]] == [1, 3]
    for row in answer["rows"]:
        assert 0 < row["tokens_per_s_min"] <= row["tokens_per_s"] <= row["tokens_per_s_max"]
        assert row["limit_tokens_per_s"] is None
    assert b"batch 3: " in result.stderr
    assert b"other requests are being served" in result.stderr  # the engine says that 3 wait


def test_every_request_is_greedy_ignores_end_tokens_and_has_a_prompt_of_its_own(
    server: BackgroundServer,
) -> None:
    run_cli(server, "bench", "--batch", "1,3", *SHORT)
    sent = prompts(server)
    assert len(sent) == (1 + 3) * (1 + 2)
    assert len({prompt.token_ids for prompt in sent}) == len(sent)
    assert {len(prompt.token_ids) for prompt in sent} == {4}
    for spec in server.engine.specs:
        assert spec.ignore_eos
        assert spec.max_tokens == 8
        assert spec.sampling.temperature == 0


def test_the_same_prompt_is_sent_only_when_asked_for(server: BackgroundServer) -> None:
    run_cli(server, "bench", "--batch", "2", *SHORT, "--same-prompt")
    sent = prompts(server)
    assert len(sent) == 2 * (1 + 2)
    assert len({prompt.token_ids for prompt in sent}) == 1


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("--batch", "1,x"), "batch"),
        (("--batch", "0"), "batch"),
        (("--batch", ""), "batch"),
        (("--plot", "/no/such/folder/a.png"), "--plot"),
        (("--trace", "/no/such/folder/a.json"), "--trace"),
        (("--plot", "bench.txt"), "--plot"),
    ],
)
def test_bad_usage_exits_2_with_one_line_before_anything_runs(
    server: BackgroundServer, arguments: tuple[str, ...], part: str
) -> None:
    result = run_cli(server, "bench", *SHORT, *arguments)
    assert (result.returncode, result.stdout) == (2, b"")
    check_one_line(result.stderr, part)
    assert server.engine.specs == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("--output-tokens", "1"),
        ("--prompt-tokens", "0"),
        ("--repeats", "0"),
        ("--repeats", "x"),
        ("--no-such-flag",),
    ],
)
def test_flags_that_do_not_parse_exit_2(
    server: BackgroundServer, arguments: tuple[str, ...]
) -> None:
    result = run_cli(server, "bench", *arguments)
    assert result.returncode == 2
    assert b"Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("--batch", "9"), "8 requests"),
        (("--prompt-tokens", "5000"), "4096"),
        (("--batch", "8", "--prompt-tokens", "600"), "256"),
        (("--coordinator", "127.0.0.1:1"), "coordinator at 127.0.0.1:1"),
    ],
)
def test_what_the_cluster_cannot_do_exits_1_with_one_line(
    server: BackgroundServer, arguments: tuple[str, ...], part: str
) -> None:
    result = run_cli(server, "bench", *arguments)
    assert (result.returncode, result.stdout) == (1, b"")
    check_one_line(result.stderr, part)
    assert server.engine.specs == []


def test_a_trace_is_of_one_more_run_of_every_batch(
    server: BackgroundServer, tmp_path: Path
) -> None:
    path = tmp_path / "trace.json"
    result = run_cli(server, "bench", "--batch", "1,2", *SHORT, "--trace", str(path))
    assert result.returncode == 0, result.stderr
    assert len(server.engine.specs) == (1 + 2) * (1 + 2) + (1 + 2)
    events = json.loads(path.read_text())["traceEvents"]
    steps = [event for event in events if event["name"].startswith("micro-batch ")]
    assert len(steps) == (1 + 2) * 8
