"""How a request ends in tests that are not about its end."""

from stagecoach.contract.request_timings import RequestTimings

NO_TIME = RequestTimings(
    queue_ns=0,
    time_to_first_token_ns=None,
    total_ns=0,
    num_steps=0,
    schedule_ns=0,
    sample_ns=0,
    detokenize_ns=0,
    step_ns=0,
    stages=(),
)
"""Of a request that no step took part in."""
