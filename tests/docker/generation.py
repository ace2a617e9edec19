"""Generates through the SDK from inside the engine's network: a process of its own, as a user's."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from tests.docker.docker_engine import ROOT, DockerEngine

_PROGRAM = """
import json, sys
from stagecoach.client import Client
asked = json.load(sys.stdin)
with Client(**asked["client"]) as client:
    client.wait_until_ready(timeout_s=60)
    for event in client.generate(asked["prompt"], max_tokens=asked["max_tokens"], ignore_eos=True):
        print(json.dumps({"token_ids": event.token_ids, "text": event.text}), flush=True)
"""


class Generated(NamedTuple):
    """What came."""

    token_ids: list[int]
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """A coordinator's doors, and what opens them."""

    engine: DockerEngine
    address: str
    """HOST:PORT of gRPC."""
    url: str
    authority: Path | None = None
    api_key: str | None = None

    def without_key(self) -> "Door":
        """The same for someone who has none."""
        return replace(self, api_key=None)

    def start(self, prompt: str | Sequence[int], max_tokens: int) -> "Generation":
        """Starts a greedy completion through the SDK, once requests are served."""
        client = {
            "address": self.address,
            "tls": False if self.authority is None else str(self.authority),
            "api_key": self.api_key,
        }
        asked = {"client": client, "prompt": prompt, "max_tokens": max_tokens}
        return Generation(self.engine, asked)

    def generate(self, prompt: str | Sequence[int], max_tokens: int) -> Generated:
        """Makes a completion through the SDK and waits for its end."""
        return self.start(prompt, max_tokens).rest()

    def generate_over_http(self, prompt: str | Sequence[int], max_tokens: int) -> str:
        """Makes a completion through the OpenAI API and returns its text."""
        [model] = json.loads(self._curl("/v1/models"))["data"]
        body = {
            "model": model["id"],
            "prompt": prompt,
            "max_tokens": max_tokens,
            "temperature": 0,
            "ignore_eos": True,
        }
        answer = json.loads(self._curl("/v1/completions", "--data", json.dumps(body)))
        return str(answer["choices"][0]["text"])

    def _curl(self, path: str, *more: str) -> str:
        options = ["--silent", "--show-error", "--fail-with-body"]
        options += ["--header", "content-type: application/json"]
        if self.authority is not None:
            options += ["--cacert", str(self.authority)]
        if self.api_key is not None:
            options += ["--header", f"authorization: Bearer {self.api_key}"]
        return self.engine.inside("curl", *options, *more, self.url + path)


class Generation:
    """A completion that is under way.

    Args:
        engine: In whose network the coordinator is.
        asked: What the program reads.
    """

    def __init__(self, engine: DockerEngine, asked: dict[str, Any]) -> None:
        self._process = subprocess.Popen(
            ["nsenter", f"--net=/run/netns/{engine.namespace}", sys.executable, "-c", _PROGRAM],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asked))
        self._process.stdin.close()
        self._lines: list[str] = []

    def wait_for(self, num_events: int) -> None:
        """Returns when so much has come and more is to come."""
        assert self._process.stdout is not None
        self._lines += [self._process.stdout.readline() for _ in range(num_events)]
        assert self._process.poll() is None

    def rest(self, within_s: float = 120) -> Generated:
        """Waits for the end and returns everything."""
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            self._lines += lines.readlines()
        assert self._process.wait(within_s) == 0
        events = [json.loads(line) for line in self._lines]
        token_ids = [token_id for event in events for token_id in event["token_ids"]]
        return Generated(token_ids, "".join(event["text"] for event in events))
