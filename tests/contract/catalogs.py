"""Catalogs of a process whose doors are under test."""

from collections.abc import Sequence
from typing import Protocol

from coordinator.core.catalog import Catalog
from coordinator.core.generation_engine import GenerationEngine
from coordinator.doors.access.caller_engine import CallerEngine
from coordinator.doors.access.caller_shares import CallerShares
from coordinator.engine.engines import Engines, RunningEngine


class ServedEngine(GenerationEngine, RunningEngine, Protocol):
    """What a process serves."""


def open_catalog(
    catalog: Catalog, engines: Sequence[ServedEngine], shares: CallerShares | None = None
) -> None:
    """Serves these engines from now on.

    Args:
        catalog: Of the doors.
        engines: Of the process.
        shares: Of whoever has an API key. None: nobody needs one.
    """
    for engine in engines:
        listed = catalog.add(engine.served_model.names)
        listed.open(engine if shares is None else CallerEngine(engine, shares))
    catalog.open(Engines(engines))
