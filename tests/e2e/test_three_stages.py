"""Three stage servers and a coordinator as processes, real weights, the SDK and the command line.

Greedy output equals that of transformers on the same weights.
"""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema_rs
import psutil
import pytest
from transformers import AutoTokenizer

from stagecoach.client import AsyncClient, Client, FinishReason
from stagecoach.model_files import open_model
from stagecoach.roofline.layer_split import split_layers
from tests.demo_model import demo_gguf, read_with_transformers

ROOT = Path(__file__).resolve().parents[2]
CLI = (sys.executable, "-m", "coordinator.cli")

PROMPT = "The stagecoach left the inn at dawn and"
QUESTION = "What is the capital of France?"
NUM_TOKENS = 24
DEADLINE_S = 300

pytestmark = pytest.mark.timeout(1200)


@dataclass(frozen=True, slots=True, kw_only=True)
class UpProcess:
    """A running `coordinator-cli up` and what it printed when it was ready."""

    process: "subprocess.Popen[str]"
    ready: dict[str, Any]

    @property
    def address(self) -> str:
        return str(self.ready["grpc"])


@pytest.fixture(scope="module")
def cluster() -> Iterator[UpProcess]:
    arguments = ["up", "--model", "demo", "--stages", "3", "--grpc-port", "0", "--json"]
    arguments += ["--dtype", "float32"]  # that of transformers here
    with subprocess.Popen(
        [*CLI, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, f"up ended with exit code {process.wait()}"
        try:
            yield UpProcess(process=process, ready=json.loads(line))
        finally:
            process.terminate()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """What transformers makes of the same weights."""

    prompt_token_ids: list[int]
    output_token_ids: list[int]
    text: str


@pytest.fixture(scope="module")
def reference() -> Reference:
    """Greedy output of transformers in one process, which reads the weights for half a minute."""
    path = demo_gguf()
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    model = read_with_transformers(path)
    model.generation_config.eos_token_id = None  # as with `ignore_eos`
    prompt = tokenizer(PROMPT, return_tensors="pt").input_ids
    output = model.generate(prompt, max_new_tokens=NUM_TOKENS, do_sample=False)
    token_ids = output[0, prompt.shape[1] :].tolist()
    return Reference(
        prompt_token_ids=prompt[0].tolist(),
        output_token_ids=token_ids,
        text=str(tokenizer.decode(token_ids, skip_special_tokens=True)),
    )


def run_cli(cluster: UpProcess, *arguments: str) -> dict[str, Any]:
    result = subprocess.run(
        [*CLI, *arguments, "--coordinator", cluster.address, "--json"],
        check=True,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer


def test_the_model_is_split_over_three_processes(cluster: UpProcess) -> None:
    stages = cluster.ready["stages"]
    layers = split_layers(open_model("demo").config, 3)
    assert [stage["layers"] for stage in stages] == [[piece.start, piece.end] for piece in layers]
    pids = {cluster.ready["pid"], *(stage["pid"] for stage in stages)}
    assert len(pids) == 4
    others = [
        child for child in psutil.Process(cluster.process.pid).children() if child.pid not in pids
    ]
    assert len(others) == 1
    assert "stagecoach.process.fork_server" in others[0].cmdline()
    assert cluster.ready["http"].startswith("127.0.0.1:")


def test_status_tells_all_stages(cluster: UpProcess) -> None:
    status = run_cli(cluster, "status")
    assert status["ready"] is True
    for told, stage in zip(status["stages"], cluster.ready["stages"], strict=True):
        assert told["state"] == "ready"
        assert (told["address"], told["layers"], told["pid"]) == (
            stage["address"],
            stage["layers"],
            stage["pid"],
        )
        num_held = told["kv_blocks_total"] - told["kv_blocks_free"]
        assert num_held == status["kv_blocks_cached"] < told["kv_blocks_total"]


def test_greedy_output_equals_transformers_through_the_sdk(
    cluster: UpProcess, reference: Reference
) -> None:
    with Client(cluster.address) as client:
        assert client.tokenize(PROMPT) == reference.prompt_token_ids
        with client.generate(PROMPT, max_tokens=NUM_TOKENS, ignore_eos=True) as stream:
            texts = [event.text for event in stream]
            completion = stream.result()
    assert list(completion.token_ids) == reference.output_token_ids
    assert "".join(texts) == completion.text == reference.text
    assert completion.finish_reason is FinishReason.LENGTH
    assert len(completion.timings.stages) == 3


async def test_greedy_output_is_the_same_for_requests_that_run_together(
    cluster: UpProcess, reference: Reference
) -> None:
    async with AsyncClient(cluster.address) as client:
        streams = [
            client.generate(PROMPT, max_tokens=NUM_TOKENS, ignore_eos=True) for _ in range(3)
        ]
        completions = [await stream.result() for stream in streams]
    for completion in completions:
        assert list(completion.token_ids) == reference.output_token_ids


def test_greedy_output_equals_transformers_through_the_command_line(
    cluster: UpProcess, reference: Reference
) -> None:
    arguments = ("--max-tokens", str(NUM_TOKENS), "--ignore-eos")
    answer = run_cli(cluster, "generate", PROMPT, *arguments)
    assert answer["token_ids"] == reference.output_token_ids
    assert answer["text"] == reference.text
    assert answer["usage"]["completion_tokens"] == NUM_TOKENS
    ids = ",".join(map(str, reference.prompt_token_ids))
    by_ids = run_cli(cluster, "generate", "--prompt-token-ids", ids, *arguments)
    assert by_ids["token_ids"] == reference.output_token_ids


def test_the_chat_template_makes_it_answer(cluster: UpProcess) -> None:
    answer = run_cli(cluster, "generate", QUESTION, "--chat", "--max-tokens", "48")
    assert "Paris" in answer["text"]
    assert answer["finish_reason"] == "stop"
    assert answer["timings"]["ttft_s"] > 0
    assert answer["timings"]["tokens_per_s"] > 0
    for stage in answer["timings"]["stages"]:
        assert stage["compute_ms"] > 0


def test_output_is_valid_against_a_schema_and_tells_its_logprobs(
    cluster: UpProcess, tmp_path: Path
) -> None:
    schema = {
        "type": "object",
        "properties": {
            "city": {"type": "string", "maxLength": 20},
            "population": {"type": "integer", "minimum": 0},
            "rivers": {
                "type": "array",
                "items": {"type": "string", "maxLength": 12},
                "maxItems": 2,
            },
        },
        "required": ["city", "population", "rivers"],
        "additionalProperties": False,
    }
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(schema))
    arguments = ("--json-schema", str(file), "--logprobs", "2", "--max-tokens", "200", "--chat")
    answer = run_cli(cluster, "generate", f"{QUESTION} Answer in JSON.", *arguments)
    assert answer["finish_reason"] == "stop"
    jsonschema_rs.validate(schema, json.loads(answer["text"]))
    assert len(answer["logprobs"]) == len(answer["token_ids"])
    for one in answer["logprobs"]:
        (_, first), (_, second) = (choice.values() for choice in one["top"])
        assert one["logprob"] <= first
        assert 0 >= first >= second


def test_output_matches_a_regex(cluster: UpProcess) -> None:
    answer = run_cli(cluster, "generate", "My number is", "--regex", "[0-9]{3}-[0-9]{4}")
    assert re.fullmatch("[0-9]{3}-[0-9]{4}", answer["text"])
    assert answer["finish_reason"] == "stop"


def test_sigterm_stops_every_process(cluster: UpProcess) -> None:
    """Last, because it ends the cluster."""
    pids = [cluster.ready["pid"], *(stage["pid"] for stage in cluster.ready["stages"])]
    cluster.process.send_signal(signal.SIGTERM)
    assert cluster.process.wait(DEADLINE_S) == 0
    assert [pid for pid in pids if psutil.pid_exists(pid)] == []
