"""Who is at the other end of a TLS connection, as gRPC tells."""

from collections.abc import Iterable, Mapping

from stagecoach.contract.errors import UnauthenticatedError
from stagecoach.security.role import Role, role_of, spiffe_id

AuthContext = Mapping[str, Iterable[bytes]]
"""What `ServicerContext.auth_context()` returns."""


def require_role(role: Role, auth_context: AuthContext) -> None:
    """Lets only peers of one role pass; the handshake has proven their certificates already.

    Args:
        role: Who may pass.
        auth_context: What gRPC knows of the peer of the call.

    Raises:
        UnauthenticatedError: The peer is another one; says who, and what is needed.
    """
    found = role_of(value.decode(errors="replace") for value in auth_context.get("peer_uri", ()))
    if found is role:
        return
    names = b", ".join(auth_context.get("x509_common_name", ())).decode(errors="replace")
    raise wrong_role(names, found=found, needed=role)


def wrong_role(name: str, *, found: Role | None, needed: Role) -> UnauthenticatedError:
    """The error about a peer that is not what it has to be.

    Args:
        name: Whose certificate it is.
        found: The role in it.
        needed: The role that has to be in it.
    """
    what = "no role" if found is None else f"role {found.value}"
    return UnauthenticatedError(
        f"the certificate of {name[:64]!r} has {what}, role {needed.value} is needed "
        f"(a URI name {spiffe_id(needed, 'NAME')})"
    )
