"""What a node of a cluster may do, as its certificate says: a SPIFFE id (spiffe.io) among its URIs.

Standard library only, so that a server which speaks plain text loads no cryptography.
"""

from collections.abc import Iterable
from enum import Enum

SPIFFE_PREFIX = "spiffe://stagecoach/"


class Role(Enum):
    """What a node is."""

    COORDINATOR = "coordinator"
    """May use stages."""
    STAGE = "stage"
    """Serves layers; a coordinator takes nobody else for a stage. May only ask other stages for
    their health."""


def spiffe_id(role: Role, name: str) -> str:
    """The identity of a node."""
    return f"{SPIFFE_PREFIX}{role.value}/{name}"


def role_of(uris: Iterable[str]) -> Role | None:
    """The role that one of a certificate's URIs gives."""
    for uri in uris:
        if uri.startswith(SPIFFE_PREFIX):
            word = uri.removeprefix(SPIFFE_PREFIX).partition("/")[0]
            return next((role for role in Role if role.value == word), None)
    return None
