"""Limits that more than one part of the coordinator keeps to. Standard library only."""

MAX_STAGES = 16
"""Stages of one pipeline."""
