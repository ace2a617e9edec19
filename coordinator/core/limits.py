"""Limits that more than one part of the coordinator keeps to. Standard library only."""

MAX_STAGES = 16
"""Stages of one pipeline."""

MAX_BLAMES = 2
"""Times that a request is computed again, without a new token in between, after the loss of a
micro-batch with it. A request that has used them up runs alone, so if a stage is lost again, this
request is the cause."""

ASSUMED_MODEL_LEN = 262_144
"""Tokens of a request by which messages are bounded while a model was not served yet."""
