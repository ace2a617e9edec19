"""What others notice while hostile requests come in a loop: health, streams, memory.

One cluster with the demo model's tokenizer on emulated stages. For each kind of request, two
clients or more send it again and again, beside eight streams, a prober and a client whose outputs
follow a usual schema. Prints, for each, the slowest GET /health, the largest gap between two tokens
of a stream, the slowest usual schema, and what the coordinator grew by. The first row is what the
machine and this program make of no attack at all.
"""

import argparse
import asyncio
import itertools
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import NamedTuple

import psutil

from benchmarks.cluster import Doors, running_doors
from benchmarks.http_stream import request
from benchmarks.report import print_json, print_table

MODEL = "demo"
GPU = "rtx-3060-12gb"
NUM_STREAMS = 8
NUM_ATTACKERS = 2
LONG = 260_000
USUAL_SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "kind": {"enum": ["tree", "bush"]}},
    "required": ["name", "kind"],
    "additionalProperties": False,
}
USUAL_TOKENS = 4
ENDLESS_TEMPLATE = (
    "{% if messages[0]['content'] == 'hang' %}"
    "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}"
    "{% endfor %}{% endfor %}{% endfor %}{% endif %}"
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
)


class Attack(NamedTuple):
    """One kind of hostile request."""

    path: str
    body: bytes
    others: tuple[bytes, ...] = ()
    """Further bodies, which are sent in turn with the first."""
    num_clients: int = NUM_ATTACKERS


class Seen(NamedTuple):
    """What others noticed of one kind of request."""

    num_requests: int
    statuses: str
    health_ms: float
    """The slowest answer."""
    gap_ms: float
    """The largest between two tokens of a stream."""
    usual_ms: float
    """The slowest short output of a usual schema; infinite when one was refused."""
    grown_mb: float
    """The most that the coordinator held beyond what it held before."""


def chat(**fields: object) -> Attack:
    """A conversation."""
    message = {"role": "user", "content": "Say a word."}
    body = {"messages": [message], "max_tokens": 16, "temperature": 0, **fields}
    return Attack("/v1/chat/completions", json.dumps(body).encode())


def completion(**fields: object) -> Attack:
    """A completion."""
    body = {"prompt": "a", "max_tokens": 16, "temperature": 0, **fields}
    # Without spaces, the longest lists fit into what is read.
    return Attack("/v1/completions", json.dumps(body, separators=(",", ":")).encode())


def tokenize(text: str) -> Attack:
    """A text to tokenize."""
    return Attack("/tokenize", json.dumps({"prompt": text}).encode())


def schema(text: str) -> Attack:
    """A completion that follows a JSON schema."""
    return completion(structured_outputs={"json": text})


def together(schemas: Iterable[Mapping[str, object]]) -> Attack:
    """Schemas that as many clients send at once."""
    first, *others = (schema(json.dumps(one)).body for one in schemas)
    return Attack("/v1/completions", first, tuple(others), num_clients=1 + len(others))


def chained(num_links: int) -> str:
    """A schema whose definitions refer to each other in a chain."""
    links: dict[str, object] = {
        f"d{i}": {"items": {"$ref": f"#/$defs/d{i + 1}"}} for i in range(num_links)
    }
    links[f"d{num_links}"] = {"type": "null"}
    return json.dumps({"$defs": links, "$ref": "#/$defs/d0"})


def mixed_word() -> str:
    """One long word, whose letters no vocabulary joins well."""
    return "".join(chr(97 + (i * i * 7 + i * 13 + i // 5) % 26) for i in range(LONG))


ATTACKS: Mapping[str, Callable[[], Attack]] = {
    "tokenize 260 000 digits": lambda: tokenize("1" * LONG),
    "tokenize one long word": lambda: tokenize(mixed_word()),
    "prompt of 250 000 characters": lambda: completion(prompt="The quick brown fox. " * 12_000),
    "list of 128 prompts": lambda: completion(prompt=["The quick brown fox. " * 90] * 128),
    "7 000 token ids, penalized": lambda: completion(
        prompt=list(range(100, 7100)), repetition_penalty=1.1, n=8
    ),
    "128 long lists of ids": lambda: completion(prompt=[[7] * 5000] * 128),
    "40 000 empty messages": lambda: chat(messages=[{"role": "user", "content": ""}] * 40_000),
    "4 096 messages of parts": lambda: chat(
        messages=[{"role": "user", "content": [{"type": "text", "text": "a"}] * 8}] * 4096
    ),
    "500 000 wrong items": lambda: Attack(
        "/v1/chat/completions", b'{"messages":[' + b",".join([b"{}"] * 500_000) + b"]}"
    ),
    "500 000 wrong ids": lambda: Attack(
        "/v1/completions", b'{"prompt":[1,' + b",".join([b'""'] * 500_000) + b"]}"
    ),
    "metadata of 300 000 objects": lambda: chat(metadata={"a": [{}] * 300_000}),
    "template that hangs": lambda: chat(messages=[{"role": "user", "content": "hang"}]),
    "128 x 20 log-probabilities": lambda: completion(n=128, logprobs=20, max_tokens=48),
    "the same, chat": lambda: chat(n=128, logprobs=True, top_logprobs=20, max_tokens=48),
    "the same, streamed": lambda: chat(
        n=128, logprobs=True, top_logprobs=20, max_tokens=48, stream=True
    ),
    "16 stop strings of 1 024": lambda: completion(
        stop=["a" * 1023 + chr(98 + i) for i in range(16)], max_tokens=256, n=8
    ),
    "1 024 biases": lambda: completion(
        logit_bias={str(i): 1 for i in range(1024)}, max_tokens=64, n=32
    ),
    "detokenize 8 000 ids": lambda: Attack(
        "/detokenize", json.dumps({"tokens": [100] * 8000}).encode()
    ),
    "256 streams that follow nothing": lambda: completion(n=128, max_tokens=64, stream=True),
    "256 streams that follow one schema": lambda: completion(
        structured_outputs={"json": USUAL_SCHEMA}, n=128, max_tokens=64, stream=True
    ),
    "128 choices of one schema": lambda: completion(
        structured_outputs={"json": USUAL_SCHEMA}, n=128, max_tokens=64
    ),
    "64 schemas at once": lambda: together({**USUAL_SCHEMA, "title": str(i)} for i in range(64)),
    "an enum of 10 000 entries": lambda: schema(
        json.dumps({"enum": [f"entry {i * 7919}" for i in range(10_000)]})
    ),
    "a dozen endless schemas": lambda: together(
        {"title": str(i), "anyOf": [{"multipleOf": 300007}, {"multipleOf": 300017}]}
        for i in range(12)
    ),
    "two multiples": lambda: schema('{"anyOf":[{"multipleOf":300007},{"multipleOf":300017}]}'),
    "integer bounds": lambda: schema(
        json.dumps({"type": "integer", "minimum": -(2**63), "maximum": -(2**63) + 2})
    ),
    "1 000 chained definitions": lambda: schema(chained(1000)),
    "3 000 chained rules": lambda: completion(
        structured_outputs={
            "grammar": "start: r0\n"
            + "".join(f"r{i}: r{i + 1}\n" for i in range(3000))
            + 'r3000: "a"\n'
        }
    ),
}


def attack(address: str, kind: str, seconds: float) -> None:
    """Sends one kind of request in a loop; prints how many came to which status."""
    wanted = ATTACKS[kind]()
    statuses: Counter[str] = Counter()
    lock = threading.Lock()
    end_s = time.monotonic() + seconds

    bodies = itertools.cycle((wanted.body, *wanted.others))

    def run() -> None:
        while time.monotonic() < end_s:
            with lock:
                body = next(bodies)
            status = _send(address, wanted.path, body)
            with lock:
                statuses[status] += 1

    threads = [threading.Thread(target=run) for _ in range(wanted.num_clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps(statuses))


def _send(address: str, path: str, body: bytes) -> str:
    host, _, port = address.rpartition(":")
    with closing(HTTPConnection(host, int(port), timeout=120)) as connection:
        try:
            headers = {"content-type": "application/json"}
            connection.request("POST", path, body, headers)
            response = connection.getresponse()
            while response.read(1 << 16):
                pass
        except (OSError, HTTPException) as error:
            return type(error).__name__
        return str(response.status)


async def health_times(address: str, times: list[float]) -> None:
    """Asks for health twenty times a second, until it is cancelled."""
    host, _, port = address.rpartition(":")
    while True:
        reader, writer = await asyncio.open_connection(host, int(port))
        with closing(writer):
            while True:
                begun = time.perf_counter()
                writer.write(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
                if b" 200 " not in await reader.readline():
                    break
                while await reader.readline() != b"\r\n":
                    pass
                times.append(time.perf_counter() - begun)
                await asyncio.sleep(0.05)


async def stream_gaps(address: str, gaps: list[float]) -> None:
    """Streams completions one after another, until it is cancelled; keeps each gap at once."""
    host, _, port = address.rpartition(":")
    while True:
        reader, writer = await asyncio.open_connection(host, int(port))
        with closing(writer):
            writer.write(request(range(100, 116), 400))
            last_s = None
            while piece := await reader.read(2**16):
                now_s = time.perf_counter()
                if b"data: " in piece:
                    gaps += [] if last_s is None else [now_s - last_s]
                    last_s = now_s
                if b"[DONE]" in piece:
                    break


async def usual_times(address: str, times: list[float]) -> None:
    """Asks for one short output of a usual schema after another, until it is cancelled."""
    path, body, *_ = completion(structured_outputs={"json": USUAL_SCHEMA}, max_tokens=USUAL_TOKENS)
    while True:
        begun = time.perf_counter()
        is_served = True
        try:
            is_served = await asyncio.to_thread(_send, address, path, body) == "200"
        finally:  # one that is still waited for in the end counts as long as it has taken
            times.append(time.perf_counter() - begun if is_served else float("inf"))
        await asyncio.sleep(0.1)


async def watch_memory(pid: int, sizes: list[int]) -> None:
    """Looks at the coordinator's memory, until it is cancelled."""
    process = psutil.Process(pid)
    while True:
        sizes.append(process.memory_info().rss)
        await asyncio.sleep(0.1)


async def measure(doors: Doors, pid: int, kind: str | None, seconds: float) -> Seen:
    """Lets one kind of request loose, or none."""
    health: list[float] = []
    gaps: list[float] = []
    usual: list[float] = []
    before = psutil.Process(pid).memory_info().rss
    sizes = [before]
    watchers = [
        asyncio.create_task(health_times(doors.http, health)),
        asyncio.create_task(watch_memory(pid, sizes)),
        asyncio.create_task(usual_times(doors.http, usual)),
        *(asyncio.create_task(stream_gaps(doors.http, gaps)) for _ in range(NUM_STREAMS)),
    ]
    statuses: dict[str, int] = {}
    if kind is None:
        await asyncio.sleep(seconds)
    else:
        command = [sys.executable, "-m", "benchmarks.hostile_load", "--attack", kind]
        command += ["--address", doors.http, "--seconds", str(seconds)]
        attackers = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
        output, _ = await attackers.communicate()
        statuses = json.loads(output)
    for watcher in watchers:
        watcher.cancel()
        with suppress(asyncio.CancelledError):
            await watcher
    return Seen(
        num_requests=sum(statuses.values()),
        statuses=" ".join(f"{name}:{count}" for name, count in sorted(statuses.items())),
        health_ms=1e3 * max(health, default=0.0),
        gap_ms=1e3 * max(gaps, default=0.0),
        usual_ms=1e3 * max(usual, default=0.0),
        grown_mb=(max(sizes) - before) / 1e6,
    )


def coordinator_pid(up_pid: int) -> int:
    """The coordinator among the processes that `up` started, or itself."""
    for process in (psutil.Process(up_pid), *psutil.Process(up_pid).children(recursive=True)):
        if "serve" in process.cmdline():
            return process.pid
    return up_pid


@contextmanager
def hostile_model() -> Iterator[str]:
    """The demo model's tokenizer with a template that hangs when it is asked to."""
    from coordinator.text.tokenizer_files import load_tokenizer
    from stagecoach.model_files import open_model

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        path.mkdir()
        tokenizer = load_tokenizer(open_model(MODEL))
        assert tokenizer is not None, "the demo model has a tokenizer"
        (path / "tokenizer.json").write_text(tokenizer.serialized())
        _save_tiny_llama(path, tokenizer.vocab_size)
        config = {"eos_token": "<|im_end|>", "chat_template": ENDLESS_TEMPLATE}
        (path / "tokenizer_config.json").write_text(json.dumps(config))
        yield str(path)


def _save_tiny_llama(path: Path, vocab_size: int) -> None:
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=8192,
        eos_token_id=2,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(path)


def parse_options() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="for each kind of request")
    parser.add_argument("--only", action="append", help="a kind of request; may be repeated")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--attack", choices=ATTACKS, help=argparse.SUPPRESS)
    parser.add_argument("--address", help=argparse.SUPPRESS)
    return parser.parse_args()


async def measure_all(doors: Doors, options: argparse.Namespace) -> dict[str, Seen]:
    """Lets every kind of request loose in turn."""
    pid = coordinator_pid(doors.pid)
    path, body, *_ = completion(structured_outputs={"json": USUAL_SCHEMA})
    await asyncio.to_thread(_send, doors.http, path, body)
    await measure(doors, pid, None, 2.0)  # warms up
    seen = {"(nothing)": await measure(doors, pid, None, options.seconds)}
    for kind in options.only or ATTACKS:
        seen[kind] = await measure(doors, pid, kind, options.seconds)
        print(kind, seen[kind], file=sys.stderr, flush=True)
    return seen


def main() -> None:
    """Prints what others noticed."""
    options = parse_options()
    if options.attack:
        attack(options.address, options.attack, options.seconds)
        return
    flags = ["--engine", "emulated", "--emulate", GPU, "--kv-memory", "256MiB"]
    with (
        hostile_model() as model,
        running_doors(
            model, num_stages=1, dtype="float16", prefix_cache=True, flags=flags
        ) as doors,
    ):
        seen = asyncio.run(measure_all(doors, options))
    if options.json:
        print_json({"emulated": True, "rows": {name: row._asdict() for name, row in seen.items()}})
        return
    print_table(
        f"Hostile requests in a loop, beside {NUM_STREAMS} streams on one emulated {GPU}",
        ["request", "sent", "statuses", "health, ms", "gap, ms", "usual schema, ms", "grown, MB"],
        [[name, *row] for name, row in seen.items()],
    )


if __name__ == "__main__":
    main()
