"""Lets pages of other origins ask, and says in the shape of all errors which may not."""

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from coordinator.doors.http.errors import error_response
from stagecoach.contract.errors import InvalidArgumentError

_MAX_SHOWN_CHARS = 128


class CrossOrigin(CORSMiddleware):
    """ASGI middleware of CORS; a preflight with any headers is taken."""

    def preflight_response(self, request_headers: Headers) -> Response:
        """Answers what a browser asks before it sends the request of a page."""
        response = super().preflight_response(request_headers)
        if response.status_code < 400:
            return response
        refusal = error_response(self._refusal(request_headers))
        for name, value in response.headers.items():
            refusal.headers.setdefault(name, value)
        return refusal

    def _refusal(self, request_headers: Headers) -> InvalidArgumentError:
        origin = request_headers["origin"]
        if not self.is_allowed_origin(origin):
            return InvalidArgumentError(
                f"origin {origin[:_MAX_SHOWN_CHARS]!r} is that of a foreign page: start the door "
                "with --cors-origin and that origin to let it ask",
                field="origin",
            )
        field = "access-control-request-method"
        return InvalidArgumentError(
            f"{field} is {request_headers[field][:_MAX_SHOWN_CHARS]!r}, must be one of "
            + ", ".join(self.allow_methods),
            field=field,
        )
