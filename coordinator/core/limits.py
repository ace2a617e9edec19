"""Limits that more than one part of the coordinator keeps to. Standard library only."""

MAX_STAGES = 16
"""Stages of one pipeline."""

MAX_REPLAYS = 2
"""Times that a request is computed again, without a new token in between, after the micro-batch it
was in was lost. One that has used them up runs alone: what is then lost is lost by it."""
