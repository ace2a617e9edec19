"""Keeps pages of foreign sites away from a door that asks nobody for a key.

A page can bind its own name to 127.0.0.1 anew (DNS rebinding); to the browser, a door of this
machine then belongs to the page. The door sees the page's name in `Host` and in `Origin`, and
answers only to names that are its own.
"""

import ipaddress
import re
import socket
from collections.abc import Collection
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from coordinator.doors.http.error_forms import error_answer
from coordinator.doors.http.errors import ForeignHostError

ANY = "*"
"""Stands for every name or origin."""

_HOST = re.compile(r"(\[[^\]]*\]|[^:]*)(:[0-9]*)?")
_OLD_IPV4 = re.compile(r"[0-9a-fx.]+")
_MAX_SHOWN_CHARS = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class AllowedHosts:
    """Names by which a door may be called; `localhost` and loopback addresses always are."""

    names: frozenset[str] = frozenset()
    """Names of the door in small letters, without a port; `*` allows every one."""
    origins: frozenset[str] = frozenset()
    """Origins of pages that may ask although they come from elsewhere, such as
    `https://chat.example`."""

    def has_host(self, host: str) -> bool:
        """True when `host`, as the header of that name has it, is a name of this door."""
        found = _HOST.fullmatch(host.strip().lower())
        return found is not None and self._has_name(found[1].removesuffix("."))

    def has_origin(self, origin: str) -> bool:
        """True when a page of this origin may ask.

        An origin of another scheme than HTTP is that of a program on this machine, such as an
        editor or an extension of the browser: no site has one.
        """
        if origin in self.origins or ANY in self.origins:
            return True
        try:
            parts = urlsplit(origin.lower())
            name = parts.hostname or ""
        except ValueError:
            return False
        if parts.scheme in ("http", "https"):
            return self._has_name(name.removesuffix("."))
        return parts.scheme != ""

    def _has_name(self, name: str) -> bool:
        if name in self.names or ANY in self.names:
            return True
        return name == "localhost" or name.endswith(".localhost") or _is_own_address(name)


class HostGuard:
    """ASGI middleware that refuses what was meant for another host.

    Args:
        app: What it wraps.
        allowed: Names of this door.
    """

    def __init__(self, app: ASGIApp, *, allowed: AllowedHosts) -> None:
        self._app = app
        self._allowed = allowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or answers it with 403."""
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            try:
                self._check(headers.getlist("host"), headers.getlist("origin"))
            except ForeignHostError as error:
                await error_answer(error, scope)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check(self, hosts: Collection[str], origins: Collection[str]) -> None:
        """Looks at both headers; a browser sends `Host` always, HTTP/1.0 may leave it out."""
        for host in hosts:
            if not self._allowed.has_host(host):
                raise ForeignHostError(
                    f"host {host[:_MAX_SHOWN_CHARS]!r} is not a name of this door: call it "
                    "localhost, or start it with --allowed-host and that name, or with API keys",
                    field="host",
                )
        for origin in origins:
            if not self._allowed.has_origin(origin):
                raise ForeignHostError(
                    f"origin {origin[:_MAX_SHOWN_CHARS]!r} is that of a foreign page: start the "
                    "door with --cors-origin and that origin to let it ask",
                    field="origin",
                )


def _is_own_address(name: str) -> bool:
    """True for a loopback address in any spelling, and for `0.0.0.0`, which leads here too."""
    try:
        address = ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return _OLD_IPV4.fullmatch(name) is not None and _is_old_loopback(name)
    mapped = getattr(address, "ipv4_mapped", None)
    return any(one.is_loopback or one.is_unspecified for one in (address, mapped) if one)


def _is_old_loopback(name: str) -> bool:
    """True for `127.1` or `0x7f000001`, which the C library reads as 127.0.0.1."""
    try:
        return ipaddress.ip_address(socket.inet_aton(name)).is_loopback
    except OSError:
        return False
