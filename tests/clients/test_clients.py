"""Programs that speak Anthropic's API or Ollama's, unchanged, against the door.

Each comes with packages that nothing else here needs. So they have an environment of their own,
which `make test-clients` makes, and `make test` leaves them out. What they send is in
`tests/contract/client_bodies` too, which `make test` reads. The demo model is too small to decide
to call a tool: forced calls and texts that were written by hand stand in.
"""

import json
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from stagecoach.contract.layer_range import LayerRange
from tests.clusters import running_engine
from tests.contract.http_door import in_background, serving_http
from tests.contract.scripted_engine import Script, ScriptedEngine
from tests.demo_model import demo_gguf

BUILD = Path(__file__).resolve().parents[2] / "build" / "clients"
CLAUDE = BUILD / "node_modules" / ".bin" / "claude"
MODEL = "SmolLM2-135M-Instruct.Q4_1"
TIMEOUT_S = 300

pytestmark = pytest.mark.clients


@asynccontextmanager
async def serving_demo() -> AsyncIterator[str]:
    ranges = [LayerRange(0, 15), LayerRange(15, 30)]
    async with (
        running_engine(
            demo_gguf(),
            ranges,
            coordinator={"served_model_names": (MODEL,)},
            kv_memory_bytes=64 << 20,
            dtype="auto",
        ) as engine,
        serving_http(engine) as address,
    ):
        yield address


@pytest.fixture(scope="module")
def demo() -> Iterator[str]:
    with in_background(serving_demo()) as address:
        yield f"http://{address}"


def call(name: str, **arguments: str) -> Script:
    written = json.dumps({"name": name, "arguments": arguments})
    return Script(f"<think>I look.</think>\n\n<tool_call>\n{written}\n</tool_call>")


def run(script: str, address: str, model: str) -> dict[str, Any]:
    """What a program of this folder prints."""
    done = subprocess.run(
        [BUILD / "venv" / "bin" / "python", Path(__file__).with_name(script), address, model],
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def scripted(script: str, *scripts: Script) -> dict[str, Any]:
    with in_background(serving_http(ScriptedEngine(*scripts))) as address:
        return run(script, f"http://{address}", "scripted")


def test_anthropics_package_gets_what_the_demo_model_says(demo: str) -> None:
    found = run("anthropic_sdk.py", demo, MODEL)
    assert "Paris" in found["whole"]["content"][0]["text"]
    assert found["streamed"]["content"][0]["text"] == found["whole"]["content"][0]["text"]
    assert found["whole"]["stop_reason"] == found["streamed"]["stop_reason"] == "end_turn"
    assert found["stopped"]["stop_sequence"] == "Paris"
    assert found["stopped"]["stop_reason"] == "stop_sequence"
    for message in found["forced"]:
        [block] = message["content"]
        assert (block["type"], block["name"]) == ("tool_use", "weather")
        assert isinstance(block["input"]["city"], str)
        assert message["stop_reason"] == "tool_use"
    assert found["parsed"]
    assert found["count"] > len(["What", "is", "the", "capital", "of", "France?"])
    assert found["unknown"][:2] == ["NotFoundError", 404]
    assert found["picture"][:2] == ["BadRequestError", 400]
    assert found["picture"][2]["message"].startswith("messages[0].content[0]: ")


def test_anthropics_loop_over_tools_calls_them() -> None:
    found = scripted("anthropic_sdk.py", call("look", city="Paris"), Script("It is sunny."))
    assert found == {"texts": ["It is sunny."], "cities": ["Paris"]}


def test_ollamas_package_gets_what_the_demo_model_says(demo: str) -> None:
    found = run("ollama_package.py", demo, MODEL)
    assert "France" in found["chat"]
    assert found["streamed"] == found["chat"]
    assert isinstance(found["formed"]["a"], bool)
    assert found["generated"][0] == found["generated"][1] != ""
    assert found["models"] == found["loaded"] == [MODEL]
    assert set(found["capabilities"]) == {"completion", "tools"}
    assert found["refused"][0] == 404


def test_ollamas_package_gets_thinking_and_calls() -> None:
    found = scripted("ollama_package.py", call("weather", city="Paris"))
    assert found["calls"] == found["streamed calls"] == [["weather", {"city": "Paris"}]]
    assert found["thinking"] == found["streamed thinking"] == "I look."


@pytest.mark.skipif(not CLAUDE.exists(), reason="needs npm, by which make test-clients installs it")
def test_claude_code_runs_a_command_that_the_model_asks_for(tmp_path: Path) -> None:
    engine = ScriptedEngine(call("Bash", command="echo hello > said.txt"), Script("All done."))
    with in_background(serving_http(engine)) as address:
        done = subprocess.run(
            [CLAUDE, "-p", "Say hello.", "--allowedTools", "Bash", "--output-format", "json"],
            cwd=tmp_path,
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(tmp_path),
                "ANTHROPIC_BASE_URL": f"http://{address}",
                "ANTHROPIC_API_KEY": "none",
                "ANTHROPIC_MODEL": "scripted",
                "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["result"] == "All done."
    assert (tmp_path / "said.txt").read_text() == "hello\n"
