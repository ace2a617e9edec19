"""How a completion is shown: its text as it comes, one JSON object, or where its time went."""

import json
import sys

from rich import box
from rich.console import Console
from rich.table import Table

from coordinator.cli.shared.console import printable
from stagecoach.client import (
    Completion,
    PromptLogprob,
    Timings,
    TokenLogprobs,
    TokenStream,
)
from stagecoach.contract.float32 import as_meant

_NS_PER_MS = 1e6
_NS_PER_S = 1e9


def stream_text(stream: TokenStream) -> None:
    """Writes the text to stdout as it comes, and a newline at its end.

    Nothing is written for a request that was not accepted.
    """
    in_terminal = sys.stdout.isatty()
    try:
        for event in stream:
            sys.stdout.write(printable(event.text) if in_terminal else event.text)
            sys.stdout.flush()
    finally:
        if stream.request_id is not None and not stream.text.endswith("\n"):
            sys.stdout.write("\n")
            sys.stdout.flush()


def completion_json(completion: Completion) -> dict[str, object]:
    """A completion as the fields of one JSON object."""
    usage = completion.usage
    logprobs = [_logprobs_json(one) for one in completion.logprobs]
    of_prompt = [
        None if one is None else _logprobs_json(one) | {"rank": one.rank}
        for one in completion.prompt_logprobs
    ]
    return {
        "text": completion.text,
        **({"reasoning": completion.reasoning} if completion.reasoning else {}),
        "token_ids": completion.token_ids,
        **({"logprobs": logprobs} if logprobs else {}),
        **({"prompt_logprobs": of_prompt} if of_prompt else {}),
        "finish_reason": completion.finish_reason,
        "usage": {
            "prompt_tokens": usage.num_prompt_tokens,
            "completion_tokens": usage.num_completion_tokens,
            "cached_tokens": usage.num_cached_tokens,
            "total_tokens": usage.num_prompt_tokens + usage.num_completion_tokens,
        },
        "timings": _timings_json(completion),
    }


def print_json(completion: Completion) -> None:
    """Prints a completion as one JSON object."""
    print(json.dumps(completion_json(completion)))


def _logprobs_json(logprobs: TokenLogprobs | PromptLogprob) -> dict[str, object]:
    top = [
        {"token_id": token_id, "logprob": as_meant(logprob)} for token_id, logprob in logprobs.top
    ]
    return {"logprob": as_meant(logprobs.logprob), "top": top}


def _timings_json(completion: Completion) -> dict[str, object]:
    """Times of the whole request; those in ms are sums over its steps."""
    timings = completion.timings
    ttft_ns = timings.time_to_first_token_ns
    return {
        "ttft_s": None if ttft_ns is None else ttft_ns / _NS_PER_S,
        "tokens_per_s": completion.tokens_per_second,
        "total_s": timings.total_ns / _NS_PER_S,
        "queue_s": timings.queue_ns / _NS_PER_S,
        "num_steps": timings.num_steps,
        "num_preemptions": timings.num_preemptions,
        "num_replays": timings.num_replays,
        "step_ms": timings.step_ns / _NS_PER_MS,
        "schedule_ms": timings.schedule_ns / _NS_PER_MS,
        "sample_ms": timings.sample_ns / _NS_PER_MS,
        "detokenize_ms": timings.detokenize_ns / _NS_PER_MS,
        "other_ms": timings.other_ns / _NS_PER_MS,
        "stages": [
            {
                "queue_ms": stage.queue_ns / _NS_PER_MS,
                "compute_ms": stage.compute_ns / _NS_PER_MS,
                "serialize_ms": stage.serialize_ns / _NS_PER_MS,
                "wire_ms": stage.wire_ns / _NS_PER_MS,
            }
            for stage in timings.stages
        ],
    }


def print_stats(completion: Completion) -> None:
    """Prints on stderr how fast a completion was and where the time of its steps went."""
    console = Console(stderr=True, highlight=False)
    console.print(stage_time_table(completion.timings))
    console.print(summary_line(completion), soft_wrap=not console.is_terminal)


def summary_line(completion: Completion) -> str:
    """Says how many tokens a completion has and how fast they came."""
    usage, ttft_ns = completion.usage, completion.timings.time_to_first_token_ns
    first = "no token" if ttft_ns is None else f"first token after {ttft_ns / _NS_PER_MS:.1f} ms"
    return (
        f"{usage.num_prompt_tokens} prompt tokens ({usage.num_cached_tokens} cached), "
        f"{usage.num_completion_tokens} generated; {first}, "
        f"then {completion.tokens_per_second:.1f} tokens/s"
    )


def stage_time_table(timings: Timings) -> Table:
    """Lays out the mean time of a step, by stage and by kind, in milliseconds."""
    ns_per_unit = _NS_PER_MS * max(timings.num_steps, 1)
    table = Table(
        title=f"ms per step, mean of {timings.num_steps}", box=box.SIMPLE, title_justify="left"
    )
    table.add_column("")
    for name in ("queue", "compute", "serialize", "wire", "total"):
        table.add_column(name, justify="right")
    for index, stage in enumerate(timings.stages):
        times = (
            stage.queue_ns,
            stage.compute_ns,
            stage.serialize_ns,
            stage.wire_ns,
            stage.total_ns,
        )
        table.add_row(f"stage {index}", *(f"{ns / ns_per_unit:.2f}" for ns in times))
    own = {
        "schedule": timings.schedule_ns,
        "sample": timings.sample_ns,
        "detokenize": timings.detokenize_ns,
        "other": timings.other_ns,
        "step": timings.step_ns,
    }
    for name, ns in own.items():
        table.add_row(name, "", "", "", "", f"{ns / ns_per_unit:.2f}")
    return table
