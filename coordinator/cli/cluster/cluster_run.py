"""Runs a local cluster from its start to its end and tells the operator about it."""

import json
import shlex
import sys
import time

from coordinator.cli.cluster.cluster import Cluster, ClusterPlan, Endpoints
from stagecoach.process.load_display import load_display
from stagecoach.process.orphans import adopt_orphans
from stagecoach.process.stop_event import run_until, stop_event


async def run_cluster(
    plan: ClusterPlan, *, json_output: bool, verbose: bool, with_parent: bool
) -> None:
    """Starts a cluster, prints its endpoints, and keeps its stages up until told to stop it.

    Args:
        plan: What to start.
        json_output: Print the endpoints as one JSON line.
        verbose: Show the logs of all processes.
        with_parent: Stop also when stdin reaches its end.

    Raises:
        StagecoachError: A process could not start, or the coordinator ended on its own; everything
            is stopped.
    """
    stop = stop_event(with_parent=with_parent)
    adopt_orphans()  # as which stages come from their fork server
    cluster = Cluster(plan, relay_logs=verbose)
    started_s = time.monotonic()

    def report(line: str) -> None:
        print(f"{time.monotonic() - started_s:5.1f} s  {line}", file=sys.stderr, flush=True)

    async def work() -> None:
        for model in plan.models:
            times = "" if model.num_replicas == 1 else f"{model.num_replicas} x "
            report(f"starting {times}{len(model.layers)} stages of {model.model}")
        with load_display(cluster.names, report) as display:
            endpoints = await cluster.start(report, display)
        report("coordinator is ready")
        text = _as_json(plan, endpoints) if json_output else _as_text(plan, endpoints)
        print(text, flush=True)
        raise await cluster.keep()

    try:
        await run_until(stop, work())
    finally:
        report("stopping")
        await cluster.stop()


def _as_json(plan: ClusterPlan, endpoints: Endpoints) -> str:
    return json.dumps(
        {
            "grpc": endpoints.grpc,
            "http": endpoints.http,
            "metrics": endpoints.metrics,
            "stages": [
                {
                    "model": model.title,
                    "address": stage.address,
                    "layers": [stage.layers.start, stage.layers.end],
                    "pid": stage.pid,
                    "metrics": stage.metrics,
                }
                for model, stages in zip(plan.models, endpoints.stages, strict=True)
                for stage in stages
            ],
            "pid": endpoints.pid,
        }
    )


def _as_text(plan: ClusterPlan, endpoints: Endpoints) -> str:
    lines = [f"coordinator  {endpoints.grpc}  (gRPC, pid {endpoints.pid})"]
    if endpoints.http is not None:
        lines.append(f"             http://{endpoints.http}/v1  (OpenAI-compatible API)")
    for model, stages in zip(plan.models, endpoints.stages, strict=True):
        if len(plan.models) > 1:
            lines.append(f"model {model.title}")
        ranges = list(dict.fromkeys(stage.layers for stage in stages))
        lines += [
            f"stage {ranges.index(stage.layers):<6} {stage.address}  "
            f"(layers {stage.layers}, pid {stage.pid})"
            for stage in stages
        ]
    if endpoints.metrics is not None:
        of_stages = (stage.metrics or "" for stages in endpoints.stages for stage in stages)
        addresses = [endpoints.metrics, *of_stages]
        lines.append(f"metrics      {' '.join(f'http://{each}/metrics' for each in addresses)}")
    which = "" if len(plan.models) == 1 else f" --model {shlex.quote(plan.models[0].title)}"
    lines += [
        "",
        f'coordinator-cli generate --coordinator {endpoints.grpc}{which} "Once upon a time"',
        "Ctrl-C stops everything.",
    ]
    return "\n".join(lines)
