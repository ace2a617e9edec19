"""What monitoring asks: `/health`, `/ready`, `/version`, `/status`."""

from typing import Any, Literal

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from coordinator.doors.http.door import Door
from coordinator.doors.http.errors import error_response
from coordinator.doors.http.openapi import failures
from coordinator.doors.http.schema.base import ResponseModel
from stagecoach.contract.errors import UnavailableError
from stagecoach.contract.status_json import status_json
from stagecoach.version import __version__


class State(ResponseModel):
    """A state that is well."""

    status: Literal["ok"]


class Version(ResponseModel):
    """What runs."""

    version: str


def state_routes(door: Door) -> APIRouter:
    """Makes the routes.

    Args:
        door: Holds the models.
    """
    router = APIRouter(tags=["state"])
    unavailable = failures(503)

    @router.get("/health", response_model=State)
    async def health() -> JSONResponse:
        """Answers while the process is alive, also while it waits for its stages."""
        return JSONResponse({"status": "ok"})

    @router.get("/ready", response_model=State, responses=unavailable)
    async def ready() -> JSONResponse:
        """Answers 200 while requests of some model are served, else 503."""
        if door.catalog.is_ready:
            return JSONResponse({"status": "ok"})
        return error_response(UnavailableError("the coordinator serves no requests at present"))

    @router.get("/version", response_model=Version)
    async def version() -> JSONResponse:
        """Says which version runs."""
        return JSONResponse({"version": __version__})

    @router.get("/status", response_model=dict[str, Any], responses=unavailable)
    async def status() -> JSONResponse:
        """Shows the coordinator, its models and every stage, as `coordinator-cli status` does."""
        return JSONResponse(status_json(await door.catalog.process().status()))

    return router
