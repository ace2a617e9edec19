"""The version of what goes over the wire."""

PROTOCOL_VERSION = 1
"""Version of `stagecoach.v1` on the wire. Both ends must agree exactly."""
