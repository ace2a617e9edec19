"""The other side of `versus_transformers`: one long-lived process of transformers `generate`.

Takes one JSON object a line on stdin, answers with one on stdout, and sleeps in between, so that
it disturbs nothing while the other side is measured.
"""

import argparse
import json
import os
import sys
import time
from functools import cache

import torch
from transformers import AutoModelForCausalLM, GenerationMixin
from transformers.generation.streamers import BaseStreamer
from transformers.utils.logging import disable_progress_bar

from coordinator.bench.prompts import fixed_prompts


class ArrivalClock(BaseStreamer):
    """Notes when `generate` hands out the prompt and then each step's tokens."""

    def __init__(self) -> None:
        self.arrivals_s: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        """Called with the prompt first, then once a step with the tokens `[batch]`."""
        self.arrivals_s.append(time.perf_counter())

    def end(self) -> None:
        """Called at the end of generation."""


@cache
def load(model: str, dtype: str) -> GenerationMixin:
    """Loads a model once for each dtype."""
    loaded: GenerationMixin = AutoModelForCausalLM.from_pretrained(model, dtype=dtype)
    return loaded


def decode_tokens_per_s(
    model: GenerationMixin, *, batch: int, num_prompt_tokens: int, num_tokens: int
) -> float:
    """Speed of decoding from the first step's tokens to the last's."""
    prompts = torch.tensor(fixed_prompts(batch, num_prompt_tokens))
    clock = ArrivalClock()
    model.generate(  # type: ignore[misc]  # transformers annotates its own self too narrowly
        prompts,
        attention_mask=torch.ones_like(prompts),
        do_sample=False,
        min_new_tokens=num_tokens,
        max_new_tokens=num_tokens,
        pad_token_id=0,
        streamer=clock,
    )
    _, first_s, *_, last_s = clock.arrivals_s
    return batch * (num_tokens - 1) / (last_s - first_s)


def main() -> None:
    """Answers until stdin ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    model = parser.parse_args().model
    disable_progress_bar()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    for line in sys.stdin:
        task = json.loads(line)
        rate = decode_tokens_per_s(load(model, task.pop("dtype")), **task)
        print(json.dumps({"tokens_per_s": rate}), flush=True)


if __name__ == "__main__":
    main()
