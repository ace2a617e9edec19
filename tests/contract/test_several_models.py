"""Several models behind one coordinator, as processes: each is routed to, and fails, by itself."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from stagecoach.client import (
    AsyncClient,
    Client,
    InvalidArgumentError,
    ModelNotFoundError,
    UnavailableError,
)
from stagecoach.contract.layer_range import LayerRange
from tests.faults.server_processes import ServerProcess
from tests.stage_processes import StageProcess, stage_processes
from tests.text_models import tiny_text_model
from tests.tiny_models import NUM_LAYERS

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 300.0
NUM_STREAMS, NUM_TOKENS = 8, 90
"""All of whose KV fits into the memory of a stage."""
RANGES = (LayerRange(0, 3), LayerRange(3, NUM_LAYERS))
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"

pytestmark = pytest.mark.timeout(900)


class Models(NamedTuple):
    """Folders of two models, which generate other tokens and have other contexts."""

    large: Path
    small: Path


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    found = Models(
        tiny_text_model(tmp_path_factory.mktemp("large"), max_position_embeddings=800),
        tiny_text_model(
            tmp_path_factory.mktemp("small"), num_extra_logits=5, max_position_embeddings=512
        ),
    )
    for model in found:
        path = model / "tokenizer_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": TEMPLATE}))
    return found


class Cluster:
    """A coordinator of several models, and clients of its doors."""

    def __init__(self, process: ServerProcess, ready: dict[str, Any]) -> None:
        self.process = process
        self.ready = ready
        self.grpc: str = ready["grpc"]
        self.metrics: str = ready["metrics"]
        self.http = httpx2.AsyncClient(
            base_url=f"http://{ready['http']}", trust_env=False, timeout=DEADLINE_S
        )

    def client(self) -> AsyncClient:
        return AsyncClient(self.grpc)

    async def cards(self) -> dict[str, dict[str, Any]]:
        """What `/v1/models` says of each name."""
        listed = (await self.http.get("/v1/models")).json()["data"]
        return {card["id"]: card for card in listed}

    async def card_when(
        self, name: str, condition: Callable[[dict[str, Any]], bool]
    ) -> dict[str, Any]:
        async with asyncio.timeout(DEADLINE_S):
            while True:
                card = (await self.cards())[name]
                if condition(card):
                    return card
                await asyncio.sleep(0.05)

    async def samples(self) -> dict[tuple[str, str | None], float]:
        """Sums of what the metrics say, by name and model."""
        text = (await self.http.get(f"http://{self.metrics}/metrics")).text
        found: dict[tuple[str, str | None], float] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                key = (sample.name, sample.labels.get("model"))
                found[key] = found.get(key, 0) + sample.value
        return found


def stages(processes: Sequence[StageProcess]) -> list[str]:
    return [process.address for process in processes]


@asynccontextmanager
async def coordinator(
    folder: Path, models: Sequence[dict[str, Any]], **options: Any
) -> AsyncIterator[Cluster]:
    """A coordinator of these models, which is ready."""
    path = folder / "cluster.yaml"
    path.write_text(json.dumps({"models": models, "drain_grace_s": 0, **options}))
    doors = [f"--{door}=127.0.0.1:0" for door in ("listen", "http-listen", "metrics-listen")]
    process = ServerProcess(
        "coordinator.cli", ["serve", "--config", str(path), *doors], folder=folder
    )
    try:
        ready = await asyncio.to_thread(process.ready_line)
        cluster = Cluster(process, ready)
        async with cluster.http:
            yield cluster
    finally:
        await asyncio.to_thread(process.close)


@asynccontextmanager
async def both(
    models: Models, folder: Path
) -> AsyncIterator[tuple[Cluster, list[StageProcess], list[StageProcess]]]:
    """Both models, each on two stages of its own."""
    async with (
        stage_processes(models.large, RANGES) as large,
        stage_processes(models.small, RANGES) as small,
        coordinator(
            folder,
            [
                {
                    "model": str(models.large),
                    "stages": stages(large),
                    "served_model_name": ["large", "org/large"],
                },
                {
                    "model": str(models.small),
                    "stages": stages(small),
                    "served_model_name": "small",
                    "max_num_seqs": 12,
                },
            ],
        ) as cluster,
    ):
        yield cluster, large, small


def command(cluster: Cluster, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "coordinator.cli", *arguments, "--coordinator", cluster.grpc],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE_S,
    )


async def test_every_door_routes_by_name(models: Models, tmp_path: Path) -> None:
    async with both(models, tmp_path) as (cluster, _, _), cluster.client() as client:
        expected = {}
        for name in ("large", "org/large", "small"):
            done = await client.complete("ab", model=name, max_tokens=8, ignore_eos=True)
            expected[name] = list(done.token_ids)
        assert expected["large"] == expected["org/large"] != expected["small"]

        cards = await cluster.cards()
        assert {name: card["max_model_len"] for name, card in cards.items()} == {
            "large": 800,
            "org/large": 800,
            "small": 512,
        }
        assert {card["state"] for card in cards.values()} == {"serving"}
        for name, first in (("org/large", "large"), ("small", "small")):
            body: dict[str, Any] = {"model": name, "max_tokens": 8, "temperature": 0}
            body |= {"ignore_eos": True, "return_token_ids": True}
            answer = await cluster.http.post("/v1/completions", json={**body, "prompt": "ab"})
            [choice] = answer.json()["choices"]
            assert (answer.json()["model"], choice["token_ids"]) == (first, expected[name])
            messages = [{"role": "user", "content": "ab"}]
            answer = await cluster.http.post(
                "/v1/chat/completions", json={**body, "messages": messages}
            )
            [choice] = answer.json()["choices"]
            assert (answer.json()["model"], choice["token_ids"]) == (first, expected[name])
            tokens = await cluster.http.post("/tokenize", json={"model": name, "prompt": "ab"})
            assert tokens.json()["tokens"] == await client.tokenize("ab", model=name)
            assert tokens.json()["max_model_len"] == cards[name]["max_model_len"]

        def with_sdk() -> list[int]:
            with Client(cluster.grpc) as blocking:
                done = blocking.complete("ab", model="small", max_tokens=8, ignore_eos=True)
                assert blocking.status().ready
            return list(done.token_ids)

        assert await asyncio.to_thread(with_sdk) == expected["small"]
        status = await client.status()
        assert [(model.names, model.max_num_seqs) for model in status.models] == [
            (("large", "org/large"), 16),
            (("small",), 12),
        ]
        shown = (await cluster.http.get("/status")).json()["models"]
        assert [model["names"] for model in shown] == [["large", "org/large"], ["small"]]
        with pytest.raises(InvalidArgumentError, match="name one of 'large', 'org/large', 'small'"):
            await client.complete("ab")
        with pytest.raises(ModelNotFoundError, match="'huge' is not served here"):
            await client.complete("ab", model="huge")
        seen = await cluster.samples()
        assert seen["stagecoach_requests_accepted_total", "large"] == 4
        assert seen["stagecoach_requests_accepted_total", "small"] == 4
        assert seen["stagecoach_ready", "large"] == seen["stagecoach_ready", "small"] == 1
        assert seen["stagecoach_stage_up", "small"] == len(RANGES)


async def test_commands_take_the_name_of_a_model(models: Models, tmp_path: Path) -> None:
    async with both(models, tmp_path) as (cluster, _, _), cluster.client() as client:
        text = tmp_path / "text"
        text.write_text("abcd" * 20)
        for arguments in (
            ("generate", "ab", "--max-tokens", "4", "--ignore-eos"),
            ("chat", "--max-tokens", "4"),
            ("bench", "--batch", "1", "--repeats", "1", "--output-tokens", "4"),
            ("perplexity", str(text)),
        ):
            refused = await asyncio.to_thread(command, cluster, *arguments)
            assert refused.returncode == 2, refused
            assert "--model is not given, and 2 are served" in refused.stderr
            assert "name one of 'large', 'org/large', 'small'" in refused.stderr
            unknown = await asyncio.to_thread(command, cluster, *arguments, "--model", "huge")
            assert unknown.returncode == 2, unknown
            assert "'huge' is not served here" in unknown.stderr
            done = await asyncio.to_thread(command, cluster, *arguments, "--model", "small")
            assert done.returncode == 0, done
        trace = tmp_path / "steps.json"
        arguments = ("generate", "ab", "--model", "org/large", "--trace", str(trace), "--json")
        done = await asyncio.to_thread(command, cluster, *arguments, "--max-tokens", "4")
        wanted = await client.complete("ab", model="large", max_tokens=4)
        assert json.loads(done.stdout)["token_ids"] == list(wanted.token_ids)
        assert json.loads(trace.read_text())["otherData"]["model"] == models.large.name
        shown = await asyncio.to_thread(command, cluster, "status")
        for name in ("large", "small"):
            assert name in shown.stdout


async def test_a_stage_that_is_lost_disturbs_no_other_model(models: Models, tmp_path: Path) -> None:
    """Eight streams of one run on, as alone, while the other waits for its stage."""
    async with both(models, tmp_path) as (cluster, large, _), cluster.client() as client:
        prompts = [[3 + index, 7, 9] for index in range(NUM_STREAMS)]
        alone = [
            list((await client.complete(prompt, **options("small", NUM_TOKENS))).token_ids)
            for prompt in prompts
        ]
        undisturbed = list((await client.complete([5, 6, 7], **options("large", 40))).token_ids)
        async with asyncio.TaskGroup() as group:
            started = asyncio.Barrier(NUM_STREAMS + 1)

            async def read(prompt: list[int]) -> list[int]:
                token_ids: list[int] = []
                stream = client.generate(prompt, **options("small", NUM_TOKENS))
                async with stream:
                    async for event in stream:
                        if not token_ids:
                            await started.wait()
                        token_ids += event.token_ids
                return token_ids

            streams = [group.create_task(read(prompt)) for prompt in prompts]
            await started.wait()
            await large[1].kill()
            card = await cluster.card_when("large", lambda one: one["state"] == "loading")
            assert large[1].address in card["problem"]
            waiting = group.create_task(client.complete([5, 6, 7], **options("large", 40)))
            assert (await cluster.http.get("/ready")).status_code == 200
            assert [await stream for stream in streams] == alone
            assert not waiting.done(), "it waits for its stage"
            status = await client.status()
            assert [model.state for model in status.models] == ["loading", "serving"]
            assert large[1].address in status.models[0].problem
            assert status.models[1].num_preemptions == 0
            seen = await cluster.samples()
            assert seen["stagecoach_replays_total", "small"] == 0
            assert seen["stagecoach_stage_losses_total", "small"] == 0
            assert seen["stagecoach_stage_losses_total", "large"] == 1
            await large[1].start()
            assert list((await waiting).token_ids) == undisturbed
        await cluster.card_when("org/large", lambda one: one["state"] == "serving")


def options(model: str, max_tokens: int) -> Any:
    return {"model": model, "max_tokens": max_tokens, "ignore_eos": True}


async def test_models_that_cannot_be_served_are_listed_and_disturb_no_other(
    models: Models, tmp_path: Path
) -> None:
    """One of wrong stages, one without files, one whose stages are away, and a good one."""
    missing = tmp_path / "nothing"
    async with (
        stage_processes(models.small, RANGES) as small,
        stage_processes(models.small, RANGES) as others,
    ):
        away = others.pop()
        await away.kill()
        entries: list[dict[str, Any]] = [
            {"model": str(models.large), "stages": stages(others), "served_model_name": "wrong"},
            {"model": str(missing), "stages": ["127.0.0.1:1"]},
            {"model": str(models.small), "stages": [away.address], "served_model_name": "away"},
            {"model": str(models.small), "stages": stages(small), "served_model_name": "good"},
        ]
        async with (
            coordinator(tmp_path, entries, connect_timeout_s=2) as cluster,
            cluster.client() as client,
        ):
            done = await client.complete([3, 4], **options("good", 8))
            cards = await cluster.cards()
            assert list(cards) == ["wrong", "nothing", "away", "good"]
            assert {name: card["state"] for name, card in cards.items()} == {
                "wrong": "failed",
                "nothing": "failed",
                "away": "loading",
                "good": "serving",
            }
            assert "0:3" in cards["wrong"]["problem"]
            assert cards["nothing"]["problem"].startswith("model 'nothing' is neither a folder")
            assert away.address in cards["away"]["problem"]
            for name, why in (
                ("wrong", "the model 'wrong' cannot be served: "),
                ("away", "the model 'away' is starting: "),
            ):
                with pytest.raises(UnavailableError, match=why):
                    await client.complete([3, 4], **options(name, 8))
                body = {"model": name, "prompt": [3, 4]}
                refused = await cluster.http.post("/v1/completions", json=body)
                assert refused.status_code == 503
                assert why in refused.json()["error"]["message"]
            status = await client.status()
            assert [model.state for model in status.models] == [
                *("failed", "failed", "loading", "serving")
            ]
            assert [len(model.stages) for model in status.models] == [1, 1, 1, 2]
            shown = await asyncio.to_thread(command, cluster, "status")
            assert "wrong (llama): failed" in shown.stdout
            assert "away (llama): not ready" in shown.stdout
            assert "good (llama): ready" in shown.stdout
            seen = await cluster.samples()
            assert seen["stagecoach_ready", "good"] == 1
            assert seen["stagecoach_ready", "wrong"] == 0
            assert list((await client.complete([3, 4], **options("good", 8))).token_ids) == list(
                done.token_ids
            )


async def test_a_model_is_served_once_what_was_wrong_is_mended(
    models: Models, tmp_path: Path
) -> None:
    """A stage of the right layers takes the place of a wrong one, and files come."""
    late = tmp_path / "late"
    async with (
        stage_processes(models.small, (LayerRange(0, NUM_LAYERS),) * 2) as small,
        stage_processes(models.large, (LayerRange(0, 3),)) as [wrong],
        stage_processes(models.large, (LayerRange(0, NUM_LAYERS),)) as [right],
    ):
        await right.kill()
        right.address = wrong.address
        entries = [
            {"model": str(models.small), "stages": stages(small[:1]), "served_model_name": "good"},
            {"model": str(models.large), "stages": [wrong.address], "served_model_name": "other"},
            {"model": str(late), "stages": stages(small[1:]), "served_model_name": "late"},
        ]
        async with coordinator(tmp_path, entries) as cluster, cluster.client() as client:
            for name in ("other", "late"):
                await cluster.card_when(name, lambda one: one["state"] == "failed")
            said = {model["names"][0]: model["state"] for model in cluster.ready["models"]}
            assert said == {"good": "serving", "other": "failed", "late": "failed"}
            await wrong.kill()
            await right.start()
            late.symlink_to(models.small)
            for name in ("other", "late"):
                await cluster.card_when(name, lambda one: one["state"] == "serving")
                await client.complete([3, 4], **options(name, 4))


async def test_what_ends_the_only_model_or_all_of_a_file_ends_the_process(
    models: Models, tmp_path: Path
) -> None:
    entry = {"model": str(tmp_path / "nothing"), "stages": ["127.0.0.1:1"]}
    path = tmp_path / "cluster.yaml"
    run = [sys.executable, "-m", "coordinator.cli", "serve", "--config", str(path)]
    arguments = (*run, "--listen", "127.0.0.1:0")
    away = {**entry, "model": str(models.small)}
    other = {"model": str(tmp_path / "other"), "stages": ["127.0.0.1:2"]}
    for listed, why in (
        ([entry], "neither a folder"),
        ([away], "127.0.0.1:1"),
        ([entry, other], "no model can be served: "),
    ):
        path.write_text(json.dumps({"models": listed, "connect_timeout_s": 0}))
        ended = await asyncio.to_thread(
            subprocess.run, arguments, cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert ended.returncode == 1
        assert why in ended.stderr.splitlines()[-1]
