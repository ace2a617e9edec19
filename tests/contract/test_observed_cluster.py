"""A cluster of processes as its operator watches it: metrics ports, the dashboard, the log."""

import json
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from coordinator.cli.cluster.cluster import Cluster, ClusterPlan, ModelPlan
from stagecoach.client import Client, InvalidArgumentError
from stagecoach.model_files import model_id_of
from tests.layer_ranges import split_evenly

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 300
SECRET = "The marmalade submarine"
STOP = "zeppelin"

pytestmark = pytest.mark.timeout(900)


class Observed(NamedTuple):
    """What was seen of a cluster from its start to its end."""

    ready: dict[str, Any]
    metrics: list[str]
    """Exposition of the coordinator and of each stage."""
    prompt_token_ids: list[int]
    outputs: list[str]
    log: str


@pytest.fixture(scope="module")
def observed() -> Observed:
    """Runs a cluster of two emulated stages with all it can log, and some requests."""
    command = [sys.executable, "-m", "coordinator.cli", "up", "--model", "demo", "--stages", "2"]
    flags = "--engine emulated --emulate rtx-3060-12gb --kv-memory 64MiB --grpc-port 0 --json"
    watched = "--metrics-port 0 --verbose --log-format json --log-level debug"
    with subprocess.Popen(
        [*command, *flags.split(), *watched.split()],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, process.communicate(timeout=DEADLINE_S)
            ready = json.loads(line)
            with Client(ready["grpc"]) as client:
                prompt_token_ids = client.tokenize(SECRET)
                outputs = [
                    client.complete(SECRET, max_tokens=12, ignore_eos=True, request_id="one").text,
                    client.complete(
                        [{"role": "user", "content": SECRET}], max_tokens=8, stop=[STOP]
                    ).text,
                ]
                with pytest.raises(InvalidArgumentError):
                    client.complete(SECRET, max_tokens=4, stop_token_ids=[4_000_000])
            addresses = [ready["metrics"], *(stage["metrics"] for stage in ready["stages"])]
            metrics = [scrape(address) for address in addresses]
            process.terminate()
            rest, log = process.communicate(timeout=DEADLINE_S)
            assert (process.returncode, rest) == (0, ""), log
        finally:
            process.kill()
    return Observed(ready, metrics, prompt_token_ids, outputs, log)


def scrape(address: str) -> str:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=DEADLINE_S) as response:
        return str(response.read().decode())


def events(observed: Observed) -> list[dict[str, Any]]:
    """What the processes logged; lines of `up` itself have no process in front."""
    relayed = re.compile(r"\[(coordinator|stage \d) ?[^]]*\] (\{.*)")
    return [
        json.loads(match[2]) | {"process": match[1]}
        for line in observed.log.splitlines()
        if (match := relayed.fullmatch(line)) is not None
    ]


def test_all_processes_serve_metrics_at_the_ports_that_are_printed(observed: Observed) -> None:
    coordinator, *stages = observed.metrics
    model = f'model="{model_id_of("demo")}"'
    assert f"stagecoach_requests_accepted_total{{{model}}} 2.0" in coordinator
    refused = f'stagecoach_requests_refused_total{{error="INVALID_ARGUMENT",{model}}} 1.0'
    assert refused in coordinator
    for stage, told in zip(stages, observed.ready["stages"], strict=True):
        start, end = told["layers"]
        assert f'layers="{start}:{end}"' in stage
        assert "process_resident_memory_bytes" in stage


def exported_names(text: str) -> set[str]:
    return {
        name
        for family in text_string_to_metric_families(text)
        for name in (
            {sample.name for sample in family.samples}
            # A counter by error has no sample before the first one.
            | {f"{family.name}_total" if family.type == "counter" else family.name}
        )
    }


def expressions(node: object) -> Iterator[str]:
    """Every PromQL expression in a dashboard."""
    if isinstance(node, dict):
        if "expr" in node:
            yield node["expr"]
        for child in node.values():
            yield from expressions(child)
    elif isinstance(node, list):
        for child in node:
            yield from expressions(child)


def test_every_metric_of_the_dashboard_is_exported(observed: Observed) -> None:
    dashboard = json.loads((ROOT / "docker/grafana/stagecoach.json").read_text())
    found = list(expressions(dashboard))
    used = {name for text in found for name in re.findall(r"\b(?:stagecoach|process)_\w+", text)}
    assert len(used) > 25
    exported: set[str] = set()
    for text in observed.metrics:
        exported |= exported_names(text)
    assert used - exported == set()
    for text in found:
        assert text.count("(") == text.count(")"), text


def test_the_dashboard_can_be_of_one_model(observed: Observed) -> None:
    """All that the coordinator says of a model is selected by it."""
    dashboard = json.loads((ROOT / "docker/grafana/stagecoach.json").read_text())
    [names] = [one for one in dashboard["templating"]["list"] if one["name"] == "model"]
    assert (names["multi"], names["includeAll"]) == (True, True)
    of_model = {
        sample.name
        for family in text_string_to_metric_families(observed.metrics[0])
        for sample in family.samples
        if "model" in sample.labels
    }
    assert len(of_model) > 40
    for text in expressions(dashboard):
        for name, selector in re.findall(r"\b(stagecoach_\w+)({[^}]*})?", text):
            assert (selector == '{model=~"$model"}') == (name in of_model), text


def test_every_panel_of_the_dashboard_has_a_place_of_its_own() -> None:
    dashboard = json.loads((ROOT / "docker/grafana/stagecoach.json").read_text())
    places: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert max(x for x, _ in cells) < 24
        assert places.isdisjoint(cells), panel["title"]
        places |= cells
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)


def test_prometheus_scrapes_the_ports_that_up_takes() -> None:
    config = yaml.safe_load((ROOT / "docker/prometheus/prometheus.yml").read_text())
    targets = [
        target
        for job in config["scrape_configs"]
        for group in job["static_configs"]
        for target in group["targets"]
    ]
    layers = tuple(split_evenly(30, 3))
    plan = ClusterPlan(
        models=(ModelPlan(model="demo", layers=layers, num_replicas=1),),
        grpc_port=0,
        http_port=None,
        stage_options=(),
        coordinator_options=(),
        metrics_port=9400,
        drain_grace_s=0,
    )
    cluster = Cluster(plan, relay_logs=False)
    commands = [
        cluster._coordinator_arguments([]),
        *(cluster._stage_arguments(number, "127.0.0.1:0") for number in range(len(layers))),
    ]
    assert targets == [command[command.index("--metrics-listen") + 1] for command in commands]


def test_each_event_of_life_is_one_line_with_its_facts(observed: Observed) -> None:
    logged = events(observed)
    for process, names in (
        (
            "coordinator",
            ["listening", "stage connected", "stage connected", "draining", "stopped"],
        ),
        *(
            (
                f"stage {index}",
                [
                    *("listening", "load started", "load finished", "stream opened"),
                    *("stream closed", "draining", "stopped"),
                ],
            )
            for index in (0, 1)
        ),
    ):
        own = [event["event"] for event in logged if event["process"] == process]
        assert [name for name in own if name in names] == names
    accepted = [event for event in logged if event["event"] == "request accepted"]
    ended = [event for event in logged if event["event"] == "request ended"]
    assert [event["request_id"] for event in accepted] == [event["request_id"] for event in ended]
    first = next(event for event in ended if event["request_id"] == "one")
    assert (first["finish_reason"], first["num_completion_tokens"]) == ("length", 12)
    assert first["num_prompt_tokens"] == len(observed.prompt_token_ids)
    assert 0 <= first["queue_s"] <= first["time_to_first_token_s"] <= first["total_s"]
    [refused] = [event for event in logged if event["event"] == "request refused"]
    assert (refused["error"], refused["field"]) == ("INVALID_ARGUMENT", "stop_token_ids")


def test_no_log_holds_prompts_tokens_or_text(observed: Observed) -> None:
    assert len(events(observed)) > 20  # what is searched is there
    for secret in (SECRET, STOP, *SECRET.split()[1:], *(text.strip() for text in observed.outputs)):
        assert secret
        assert secret not in observed.log
    ids = observed.prompt_token_ids
    for text in (str(ids), str(tuple(ids)), ",".join(map(str, ids)), ", ".join(map(str, ids))):
        assert text not in observed.log


@pytest.mark.parametrize(
    ("command", "flags", "said"),
    [
        ("serve", ["--log-format", "xml"], "--log-format 'xml' is not one of console, json"),
        ("serve", ["--log-level", "loud"], "--log-level 'loud'"),
        ("serve", ["--metrics-listen", "9400"], "--metrics-listen '9400' is not HOST:PORT"),
        ("serve", ["--otlp-endpoint", "localhost:4317"], "is not a URL"),
        ("stage", ["--log-format", "xml"], "--log-format 'xml' is not one of console, json"),
        ("stage", ["--metrics-listen", "nowhere"], "nowhere"),
    ],
)
def test_bad_flags_are_refused_in_one_line(command: str, flags: list[str], said: str) -> None:
    arguments = {
        "serve": ["-m", "coordinator.cli", "serve", "--model", "demo", "--stage", "127.0.0.1:1"],
        "stage": ["-m", "stage_server", "--model", "demo", "--layers", "0:1"],
    }[command]
    run = subprocess.run(
        [sys.executable, *arguments, *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert run.returncode == 2
    assert "Traceback" not in run.stderr
    assert said in " ".join(run.stderr.replace("│", " ").split())
