"""Leads a request home whose path is that of a route but for slashes or `/v1`.

The same answer is given, not a redirect: many clients drop the body on their way to another path.
"""

import re

from starlette.types import ASGIApp, Receive, Scope, Send

_API = "/v1"
_API_ROUTES = frozenset(
    {
        *("/chat/completions", "/completions", "/embeddings", "/models", "/responses"),
        *("/messages", "/messages/count_tokens"),
    }
)
_ROOT_ROUTES = frozenset(
    {"/tokenize", "/detokenize", "/tokenizer_info", "/health", "/ready", "/version", "/status"}
)
_DOUBLED_API = re.compile(r"\A(?:/v1)+(?=/v1/)")
_OF_MODEL = re.compile(r"(?:/+v1)*/+models/(.*)", re.DOTALL)


def home_path(path: str) -> str:
    """The path of the route that a client means.

    Slashes at the end, several in the place of one, a missing `/v1`, and one too many count for
    nothing. The name of a model keeps the slashes that it begins with or holds.

    Args:
        path: As it came, decoded.
    """
    path = "/" + path.strip("/")
    if model := _OF_MODEL.fullmatch(path):
        return f"{_API}/models/{model[1]}"
    path = _DOUBLED_API.sub("", re.sub("/+", "/", path))
    if path in _API_ROUTES or path.startswith("/responses/"):
        return _API + path
    if path.startswith(f"{_API}/") and path.removeprefix(_API) in _ROOT_ROUTES:
        return path.removeprefix(_API)
    return path


class LenientPaths:
    """ASGI middleware around everything that looks at a path.

    Args:
        app: What it wraps.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on as if it had asked for the path that it means."""
        if scope["type"] == "http":
            scope = {**scope, "path": home_path(scope["path"])}
        await self._app(scope, receive, send)
