"""The status page at `/`, its files, and the stream of states that it shows.

The page is static, asks no other host for anything, and runs no script but its own files, which
the browser enforces by the Content-Security-Policy.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from types import MappingProxyType

from fastapi import APIRouter, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from coordinator.doors.http.door import Door
from coordinator.doors.http.live_status import LiveStatus, Viewer

_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
_PAGE = files("coordinator.doors.http.page")
_FILES = {
    f"/page/{file.name}" if file.name != "index.html" else "/": file.name
    for file in _PAGE.iterdir()
    if file.name.rpartition(".")[2] in _TYPES
}
PAGE_PATHS = frozenset(_FILES)
"""What anyone may load: they hold nothing but the page itself, which asks for a key if it must."""

SECURITY_HEADERS: Mapping[str, str] = MappingProxyType(
    {
        "content-security-policy": (
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
            "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        ),
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cross-origin-opener-policy": "same-origin",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PageFile:
    """One file of the page, read once."""

    body: bytes
    headers: Mapping[str, str]
    """They let a browser keep the file, and ask whether it is still the same."""

    @classmethod
    def read(cls, name: str) -> "PageFile":
        """Reads a file of the package."""
        body = _PAGE.joinpath(name).read_bytes()
        headers = {
            **SECURITY_HEADERS,
            "content-type": _TYPES[name.rpartition(".")[2]],
            "cache-control": "no-cache",  # kept, but asked after each time
            "etag": f'"{hashlib.sha256(body).hexdigest()[:32]}"',
        }
        return cls(body=body, headers=MappingProxyType(headers))

    def response(self, if_none_match: str | None) -> Response:
        """Answers a request for it; 304 when the browser has it already."""
        known = {tag.strip().removeprefix("W/") for tag in (if_none_match or "").split(",")}
        headers = dict(self.headers)
        if known & {headers["etag"], "*"}:
            return Response(status_code=304, headers=headers)
        return Response(self.body, headers=headers)


class StatusStream(Response):
    """Server-sent events, one state each, until the client goes or the engine closes.

    Args:
        live: What is shown.
    """

    def __init__(self, live: LiveStatus) -> None:
        super().__init__(
            media_type="text/event-stream",
            headers={"cache-control": "no-store", "x-accel-buffering": "no"},
        )
        self._live = live
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends states. The client's going away ends the view within one period.

        Raises:
            UnavailableError: There is no engine; nothing has been sent.
            QueueFullError: Too many look already; nothing has been sent.
        """
        request = Request(scope, receive)
        with self._live.viewer() as viewer:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await _send_states(viewer, request, send)
            await send({"type": "http.response.body", "body": b""})


async def _send_states(viewer: Viewer, request: Request, send: Send) -> None:
    async for state in viewer:
        if await request.is_disconnected():
            return
        body = f"data: {state}\n\n".encode()
        await send({"type": "http.response.body", "body": body, "more_body": True})


def page_routes(door: Door) -> APIRouter:
    """Makes the routes; reads the files of the page.

    Args:
        door: Holds the models.
    """
    router = APIRouter(include_in_schema=False)
    live = LiveStatus(door)
    page_files = {path: PageFile.read(name) for path, name in _FILES.items()}

    async def page_file(request: Request) -> Response:
        return page_files[request.url.path].response(request.headers.get("if-none-match"))

    for path in page_files:
        router.add_api_route(path, page_file, methods=["GET", "HEAD"])

    @router.get("/status/stream")
    async def status_stream() -> Response:
        return StatusStream(live)

    return router
