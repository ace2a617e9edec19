"""What metrics cost a step: its summary, and counting it, three stages, by running sequences.

The engine makes the summary and tells its observers after the tokens are on their way. Prints
medians in microseconds; a scrape runs beside the engine and is timed on its own.
"""

import argparse
import time
from dataclasses import fields, replace
from statistics import median

from prometheus_client import generate_latest

from benchmarks.report import print_table
from coordinator.core.events import Accepted
from coordinator.core.request import Request
from coordinator.core.sampling_params import SamplingParams
from coordinator.core.sequence import Sequence
from coordinator.core.step import ScheduledSlice, SchedulerOutput, StepOutput
from coordinator.engine.landed_step import LandedStep, NewToken, SentTokens
from coordinator.engine.live_request import LiveRequest
from coordinator.engine.micro_batches import MicroBatch
from coordinator.engine.request_stream import RequestStream
from coordinator.engine.time_vector import TimeVector
from coordinator.observe.metrics import CoordinatorMetrics
from coordinator.observe.observer import Observers
from coordinator.observe.request_log import RequestLog
from coordinator.sampling.token_sampler import TokenSampler
from coordinator.scheduler.load import Load
from coordinator.text.output_text import OutputText
from stagecoach.contract.stage_timings import StageTimings
from stagecoach.contract.step_record import StageVisit, StepInstants

NUM_STAGES = 3
NUM_WARM_UP_STEPS = 200


def live_request(index: int) -> LiveRequest:
    """A request of token ids in the middle of its life."""
    request = Request(
        request_id=f"req-{index:016x}",
        prompt_token_ids=(1, 2, 3),
        max_tokens=1000,
        sampling=SamplingParams().with_seed(0),
    )
    return LiveRequest(
        request=request,
        sequence=Sequence(request=request),
        sampler=TokenSampler(request.sampling, prompt_token_ids=(1, 2, 3), vocab_size=32000),
        text=OutputText(None, ()),
        stream=RequestStream(
            Accepted(request_id=request.request_id, prompt_token_ids=(1, 2, 3)),
            on_cancel=lambda: None,
        ),
        times=TimeVector.zeros(NUM_STAGES),
    )


def decode_step(requests: list[LiveRequest]) -> LandedStep:
    """A micro-batch in which every request decodes one token."""
    output = SchedulerOutput(
        micro_batch_id=1,
        slices=tuple(
            ScheduledSlice(live.request_id, index, 100, (7,), 1)
            for index, live in enumerate(requests)
        ),
        slot_ops=(),
    )
    visit = StageVisit(0, 1, StageTimings(50_000, 5_000_000, 200_000, 400_000))
    load = Load(num_decodes=len(requests), num_prefills=0, num_prefill_tokens=0, empty_kv_share=0.5)
    return LandedStep(
        micro_batch=MicroBatch(
            output=output,
            participants=requests,
            load=load,
            depth=1,
            started_ns=0,
            scheduled_ns=0,
        ),
        num_failed_drafts=0,
        result=StepOutput(
            micro_batch_id=1,
            logits=(),
            visits=(visit,) * NUM_STAGES,
            stage_timings=(visit.timings,) * NUM_STAGES,
        ),
        tokens=[NewToken(live, 7, None, False, None, None) for live in requests],
        prompt_logprobs={},
        hidden_sums={},
        sampling_ns=0,
        sampled_ns=0,
        decided_ns=0,
        clock=time.perf_counter_ns,
    )


def step_cost_us(num_sequences: int, num_steps: int) -> tuple[float, float]:
    """Medians of a step (its summary, and telling the observers) and of a scrape."""
    step = decode_step([live_request(index) for index in range(num_sequences)])
    metrics = CoordinatorMetrics()
    recorder = metrics.add("benchmark", model="benchmark").recorder
    observers = Observers((RequestLog(), recorder))
    for index in range(num_sequences):
        observers.request_accepted(f"req-{index:016x}", 3)
    durations_ns = []
    instants = dict.fromkeys((field.name for field in fields(StepInstants)), 0)
    nothing_took_time = StepInstants(**instants)
    for index in range(num_steps + NUM_WARM_UP_STEPS):
        emitted_ns = index * 5_000_000
        sent = SentTokens(step.tokens, [], replace(nothing_took_time, emitted_ns=emitted_ns))
        started_ns = time.perf_counter_ns()
        observers.step_ended(step.summary(sent))
        if index >= NUM_WARM_UP_STEPS:
            durations_ns.append(time.perf_counter_ns() - started_ns)
    scrapes_ns = []
    for _ in range(50):
        started_ns = time.perf_counter_ns()
        generate_latest(metrics.registry)
        scrapes_ns.append(time.perf_counter_ns() - started_ns)
    return median(durations_ns) / 1e3, median(scrapes_ns) / 1e3


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sequences", default="1,8,96", help="running sequences, by comma")
    parser.add_argument("--steps", type=int, default=5000)
    options = parser.parse_args()
    rows = []
    for num_sequences in map(int, options.sequences.split(",")):
        step_us, scrape_us = step_cost_us(num_sequences, options.steps)
        rows.append([num_sequences, step_us, scrape_us])
    print_table(
        f"Metrics, us, {NUM_STAGES} stages", ["running sequences", "a step", "a scrape"], rows
    )


if __name__ == "__main__":
    main()
