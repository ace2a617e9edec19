"""Stagecoach runs a large language model over several small machines; this is its Python client.

    from stagecoach import Client

    with Client("localhost:50050") as client:
        print(client.complete("The stagecoach left at dawn", max_tokens=64).text)

Every name of `stagecoach.client` can be imported from here. Importing this package alone loads
nothing: what servers share lies in it too, and they choose what they load, and when.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stagecoach.client import *  # noqa: F403

    __version__: str


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever the client has
    if name == "__version__":
        return import_module("stagecoach.version").__version__
    client = import_module("stagecoach.client")
    if name not in client.__all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(client, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *import_module("stagecoach.client").__all__])
