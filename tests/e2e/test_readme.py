"""The commands and programs that stand in blocks of the documents are run, as they stand there.

One that stands in several of them is run once. Only addresses differ: free ports on loopback take
the place of fixed ones and of the three boxes. A bench repeats once, and a gibibyte of memory for
KV, which each stage would fill, is 64 MiB.

Of commands in prose and tables, `coordinator-cli health` and `--version` are run. What takes hours,
root or a card is not: a benchmark is asked for its help, and make what it would do. What needs
docker or the network is not run at all; `tests/unit/test_documents.py` checks that its commands,
flags and files are there.
"""

import contextlib
import io
import json
import os
import re
import shlex
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx2
import pytest

from stagecoach.client import Client, UnauthenticatedError
from stagecoach.model_files import open_model
from stagecoach.roofline.layer_split import split_layers
from tests.documents import ROOT, commands, fenced, named_commands, spans
from tests.forked_python import ForkedPython
from tests.tiny_models import tiny_model

READY_S = 900
"""For a command; it only ends what hangs, on a machine that does other things besides."""
BIN = Path(sys.executable).parent

pytestmark = pytest.mark.timeout(1800)


COMMANDS = commands()
DEPLOY = (ROOT / "docs/deploy.md").read_text()


def commands_of(*words: str) -> list[str]:
    """The documents' commands that start with these words."""
    found = [command for command in COMMANDS if command.split()[: len(words)] == list(words)]
    assert found, f"no document has a command {' '.join(words)}"
    return found


def named_commands_of(beginning: str) -> list[str]:
    """Commands in prose that begin so."""
    program = beginning.split()[0]
    return [one for one in named_commands(program) if one.startswith(beginning)]


def environment(**variables: str) -> dict[str, str]:
    path = os.pathsep.join([str(BIN), os.environ["PATH"]])
    return {**os.environ, "PATH": path, "STAGECOACH_KV_MEMORY": "64MiB", **variables}


def run(command: str, *, cwd: Path = ROOT, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Runs a command to its end; it must succeed."""
    done = subprocess.run(
        shlex.split(command),
        capture_output=True,
        text=True,
        timeout=READY_S,
        cwd=cwd,
        env=environment(**variables),
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


def output_of(command: str, *, cwd: Path = ROOT, **variables: str) -> str:
    """What a command prints on stdout."""
    return run(command, cwd=cwd, **variables).stdout


@contextmanager
def server(command: str, *, cwd: Path = ROOT) -> Iterator[dict[str, str]]:
    """Runs a server; yields the JSON line that it prints when it is ready."""
    with subprocess.Popen(
        [*shlex.split(command), "--json"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env=environment(),
    ) as process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            assert line, f"{command} ended with {process.wait(10)} before it was ready"
            yield json.loads(line)
        finally:
            process.terminate()
            assert process.wait(30) == 0


@pytest.fixture(scope="module")
def doors() -> Iterator[dict[str, str]]:
    """The cluster of the sixty seconds; yields its addresses."""
    [command] = [one for one in commands_of("coordinator-cli", "up") if "emulated" not in one]
    with server(f"{command} --grpc-port 0 --kv-memory 64MiB") as ready:
        yield ready


@pytest.fixture(scope="module")
def coordinator(doors: dict[str, str]) -> str:
    """Its gRPC address."""
    return doors["grpc"]


def test_no_command_is_without_a_test() -> None:
    tested = {
        ("make", "demo"),
        ("coordinator-cli", "up"),
        ("coordinator-cli", "generate"),
        ("coordinator-cli", "chat"),
        ("coordinator-cli", "status"),
        ("coordinator-cli", "serve"),
        ("coordinator-cli", "plan"),
        ("coordinator-cli", "bench"),
        ("coordinator-cli", "perplexity"),
        ("coordinator-cli", "certs"),
        ("coordinator-cli", "keys"),
        ("export", "STAGECOACH_COORDINATOR=192.168.1.10:50050"),
        ("export", "STAGECOACH_COORDINATOR_CA=pki/ca.pem"),
        ("export", "STAGECOACH_API_KEY=..."),
        ("stage-server", "--model"),
        ("curl", "localhost:8000/v1/chat/completions"),
    }
    assert {tuple(command.split()[:2]) for command in COMMANDS} == tested


def test_the_demo_answers_and_shows_where_the_time_went() -> None:
    [command] = commands_of("make", "demo")
    done = run(command)
    assert "Paris" in done.stdout
    assert "compute" in done.stderr


@pytest.mark.parametrize("command", commands_of("coordinator-cli", "generate"))
def test_generate_commands(coordinator: str, command: str, tmp_path: Path) -> None:
    limit = "" if "--max-tokens" in command else " --max-tokens 24"
    text = output_of(f"{command}{limit}", cwd=tmp_path, STAGECOACH_COORDINATOR=coordinator)
    if "capital of France" in command:
        assert "Paris" in text
    if "--json" in command:
        answer = json.loads(text)
        assert answer["finish_reason"] in ("stop", "length")
        assert len(answer["token_ids"]) == answer["usage"]["completion_tokens"] > 0
    if "--trace" in command:
        assert json.loads((tmp_path / "steps.json").read_text())["traceEvents"]
    assert text.strip()


def test_the_plan_says_what_fits_and_how_fast() -> None:
    [command] = commands_of("coordinator-cli", "plan")
    text = output_of(command)
    assert "26.03 GB" in text
    assert "rtx-3060-12gb" in text


def test_the_emulated_cluster_serves_token_ids() -> None:
    [command] = [one for one in commands_of("coordinator-cli", "up") if "emulated" in one]
    with server(f"{command} --grpc-port 0") as ready:
        answer = output_of(
            "coordinator-cli generate --prompt-token-ids 1,2,3 --max-tokens 4 --json",
            STAGECOACH_COORDINATOR=ready["grpc"],
        )
        assert len(json.loads(answer)["token_ids"]) == 4


def test_the_perplexity(coordinator: str) -> None:
    [command] = commands_of("coordinator-cli", "perplexity")
    text = output_of(f"{command} --limit 64", STAGECOACH_COORDINATOR=coordinator)
    assert "perplexity" in text.lower()


def test_the_bench(coordinator: str, tmp_path: Path) -> None:
    [command] = commands_of("coordinator-cli", "bench")
    text = output_of(
        f"{command} --repeats 1 --prompt-tokens 16 --output-tokens 8",
        cwd=tmp_path,
        STAGECOACH_COORDINATOR=coordinator,
    )
    assert "tokens/s" in text
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "bench.json").read_text())["traceEvents"]


def test_status_shows_every_stage(coordinator: str) -> None:
    [command] = commands_of("coordinator-cli", "status")
    text = output_of(command, STAGECOACH_COORDINATOR=coordinator)
    for layers in split_layers(open_model("demo").config, 3):
        assert str(layers) in text


def test_the_chat_answers_what_is_piped_in(coordinator: str, tmp_path: Path) -> None:
    [command] = commands_of("coordinator-cli", "chat")
    done = subprocess.run(
        [*shlex.split(command), "--max-tokens", "16"],
        input="What is the capital of France?\n",
        capture_output=True,
        text=True,
        timeout=READY_S,
        env=environment(STAGECOACH_COORDINATOR=coordinator, XDG_STATE_HOME=str(tmp_path)),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout


def test_several_models_of_a_file(tmp_path: Path) -> None:
    """The file of the documents; only addresses differ."""
    [text] = fenced("yaml")
    [command] = named_commands_of("coordinator-cli serve --config cluster.yaml")
    large = tiny_model("llama", tmp_path)
    (tmp_path / "models").mkdir()
    large.rename(tmp_path / "models/llama-2-13b")
    limits = "--listen 127.0.0.1:0 --threads 1 --kv-memory 16MiB"
    with ExitStack() as boxes:
        for box, model, stage in (
            ("box1", "demo", "1/2"),
            ("box2", "demo", "2/2"),
            ("box3", "models/llama-2-13b", "1/2"),
            ("box4", "models/llama-2-13b", "1/2"),
            ("box5", "models/llama-2-13b", "2/2"),
        ):
            stage_server = f"stage-server --model {model} --stage {stage} {limits}"
            ready = boxes.enter_context(server(stage_server, cwd=tmp_path))
            assert f"{box}:50051" in text
            text = text.replace(f"{box}:50051", ready["address"])
        (tmp_path / "cluster.yaml").write_text(text)
        ready = boxes.enter_context(server(f"{command} --listen 127.0.0.1:0", cwd=tmp_path))
        listed = httpx2.get(f"http://{ready['http']}/v1/models", timeout=READY_S).json()["data"]
        assert {card["id"]: card["state"] for card in listed} == dict.fromkeys(
            ("small", "large", "llama-2-13b"), "serving"
        )
        for name, what in (("small", "One two three"), ("llama-2-13b", "")):
            prompt = f"'{what}'" if what else "--prompt-token-ids 1,2,3 --json"
            generate = f"coordinator-cli generate {prompt} --model {name} --max-tokens 4"
            assert output_of(generate, STAGECOACH_COORDINATOR=ready["grpc"]).strip()


def test_http_answers_as_openai_does(doors: dict[str, str]) -> None:
    """By the documents' request; curl itself need not be here."""
    [command] = commands_of("curl")
    _, url, header, value, data, body = shlex.split(command)
    assert (header, data) == ("-H", "-d")
    url = f"http://{url.replace('localhost:8000', doors['http'])}"
    answer = httpx2.post(url, content=body, headers=dict([value.split(": ", 1)]), timeout=READY_S)
    assert answer.json()["choices"][0]["message"]["content"].strip()


@pytest.mark.parametrize("program", fenced("python"))
def test_python_programs(coordinator: str, program: str) -> None:
    assert "localhost:50050" in program
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(program.replace("localhost:50050", coordinator), "document", "exec"), {})
    assert len(printed.getvalue()) > 40
    assert ("temperature" in program) == ("temperature is -1.0" in printed.getvalue())


def test_health_tells_whether_a_server_serves(coordinator: str) -> None:
    [command] = named_commands_of("coordinator-cli health")
    assert output_of(command.replace("HOST:PORT", coordinator))
    [version] = named_commands_of("coordinator-cli --version")
    assert output_of(version)


BENCHMARKS = sorted(
    {
        found[1]
        for page in ("docs/performance.md", "CONTRIBUTING.md")
        for span in spans(ROOT / page)
        if (found := re.fullmatch(r"(?:\S*python -m )?(benchmarks[./]\w+(?:\.sh)?)( --.*)?", span))
    }
)
"""Benchmarks that a page names; each takes minutes, one needs root."""


@pytest.fixture(scope="module")
def python() -> Iterator[ForkedPython]:
    """Has what benchmarks import of others."""
    others = ("fastapi", "grpc.aio", "torch", "transformers.models.auto.modeling_auto")
    with ForkedPython(others) as forked:
        yield forked


START = """
import runpy, sys
sys.argv = [{name!r}, "--help"]
runpy.run_module({name!r}, run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_starts_and_says_what_it_measures(name: str, python: ForkedPython) -> None:
    if name.endswith(".sh"):
        assert len(output_of(f"{ROOT / name} --help")) > 40
        return
    done = python.run(START.format(name=name), environment())
    assert done.returncode == 0, done.stderr
    assert len(done.stdout) > 40


@pytest.mark.parametrize("command", named_commands("make"))
def test_make_knows_how_to_do_what_a_document_names(command: str) -> None:
    """Targets that need a card, root, the network or an hour too: make says what it would do."""
    variables = dict(
        word.split("=", 1) for word in shlex.split(command) if re.match(r"[A-Z]+=", word)
    )
    told = output_of(f"{command} --dry-run")
    assert variables.get("ARGS", "") in told


def certificates(folder: Path) -> set[tuple[str, bytes]]:
    """Name and content of every certificate that lies in the folder of the documents."""
    return {(path.name, path.read_bytes()) for path in folder.glob("pki/*.pem")}


def test_three_boxes(tmp_path: Path) -> None:
    """With the documents' certificates, keys and variables; only addresses differ."""
    for command in commands_of("coordinator-cli", "certs"):
        if " issue " in command:
            command += " --host 127.0.0.1"
        before = certificates(tmp_path)
        text = output_of(command, cwd=tmp_path)
        changed = {name for name, _ in certificates(tmp_path) - before}
        if " show " in command:
            assert not changed
            assert all(name in text for name, _ in before)
        else:
            assert len(changed) == 1
            assert changed.pop() in text
    [new_key] = commands_of("coordinator-cli", "keys")
    key = output_of(new_key, cwd=tmp_path).strip()
    commands = commands_of("stage-server")
    assert len(commands) == 3
    [serve] = commands_of("coordinator-cli", "serve")
    [door_flags] = re.findall(r"add to `serve` the flags `(.*?)`", DEPLOY)
    door_flags = re.sub(r"0\.0\.0\.0:\d+", "127.0.0.1:0", door_flags)
    with ExitStack() as boxes:
        for index, command in enumerate(commands, start=1):
            assert "0.0.0.0:50051" in command
            local = command.replace("0.0.0.0:50051", "127.0.0.1:0")
            ready = boxes.enter_context(server(local, cwd=tmp_path))
            serve = serve.replace(f"box{index}:50051", ready["address"])
        ready = boxes.enter_context(server(f"{serve} {door_flags}", cwd=tmp_path))
        values = {
            "STAGECOACH_COORDINATOR": ready["grpc"],
            "STAGECOACH_COORDINATOR_CA": "pki/ca.pem",
            "STAGECOACH_API_KEY": key,
        }
        assert [command.split()[1].partition("=")[0] for command in commands_of("export")] == [
            *values
        ]
        generate = "coordinator-cli generate 'One two three' --max-tokens 4"
        assert output_of(generate, cwd=tmp_path, **values).strip()
        trust = ssl.create_default_context(cafile=tmp_path / "pki" / "ca.pem")
        models = f"https://{ready['http']}/v1/models"
        answer = httpx2.get(models, headers={"authorization": f"Bearer {key}"}, verify=trust)
        assert answer.json()["data"][0]["owned_by"] == "stagecoach"
        with (
            Client(ready["grpc"], tls=tmp_path / "pki" / "ca.pem", api_key=f"{key}x") as stranger,
            pytest.raises(UnauthenticatedError),
        ):
            stranger.status()
