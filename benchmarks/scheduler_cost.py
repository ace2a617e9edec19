"""What the scheduler costs a step: 96 running sequences that decode, no stage and no clock.

`schedule` and `update` are timed on their own, with the prefix cache off and on. Prints medians in
microseconds.
"""

import argparse
import time
from statistics import median

from benchmarks.report import print_table
from coordinator.core.request import Request
from coordinator.core.sequence import Sequence
from coordinator.scheduler import Scheduler, SchedulerConfig

NUM_PROMPT_TOKENS = 100
NUM_WARM_UP_STEPS = 50


def step_times_us(num_sequences: int, num_steps: int, *, prefix_cache: bool) -> tuple[float, float]:
    """Medians of `load` and `schedule` together, and of `update`."""
    max_tokens = num_steps + NUM_WARM_UP_STEPS + 2
    blocks_per_sequence = (NUM_PROMPT_TOKENS + max_tokens) // 16 + 1
    scheduler = Scheduler(
        SchedulerConfig(
            max_num_batched_tokens=num_sequences * NUM_PROMPT_TOKENS,
            max_num_seqs=num_sequences,
            max_model_len=NUM_PROMPT_TOKENS + max_tokens,
            kv_block_size=16,
            num_kv_blocks=num_sequences * blocks_per_sequence,
            prefix_cache=prefix_cache,
        )
    )
    for index in range(num_sequences):
        prompt = tuple(range(index, index + NUM_PROMPT_TOKENS))
        request = Request(request_id=str(index), prompt_token_ids=prompt, max_tokens=max_tokens)
        scheduler.adopt(Sequence(request=request))
    scheduled_ns, updated_ns = [], []
    for step in range(num_steps + NUM_WARM_UP_STEPS):
        started_ns = time.perf_counter_ns()
        scheduler.load()
        output = scheduler.schedule()
        decided_ns = time.perf_counter_ns()
        assert output is not None, "96 sequences have something to run"
        sampled = {piece.request_id: (step,) for piece in output.slices if piece.num_sampled_rows}
        sampled_ns = time.perf_counter_ns()
        scheduler.update(output, sampled)
        if step >= NUM_WARM_UP_STEPS:
            scheduled_ns.append(decided_ns - started_ns)
            updated_ns.append(time.perf_counter_ns() - sampled_ns)
    return median(scheduled_ns) / 1e3, median(updated_ns) / 1e3


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sequences", type=int, default=96)
    parser.add_argument("--steps", type=int, default=2000)
    options = parser.parse_args()
    rows = []
    for prefix_cache in (False, True):
        schedule_us, update_us = step_times_us(
            options.sequences, options.steps, prefix_cache=prefix_cache
        )
        cache = "on" if prefix_cache else "off"
        rows.append([cache, schedule_us, update_us, schedule_us + update_us])
    print_table(
        f"The scheduler, us a step with {options.sequences} running sequences",
        ["prefix cache", "schedule", "update", "both"],
        rows,
    )


if __name__ == "__main__":
    main()
