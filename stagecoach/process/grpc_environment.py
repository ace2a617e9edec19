"""How gRPC's core runs in our own processes; programs that use the SDK decide for themselves."""

import os

_SETTINGS = {
    # Its errors reach us as exceptions; what it logs besides is not for the reader of a command.
    "GRPC_VERBOSITY": "NONE",
    # A message then wakes one thread of the core less on its way to Python: the thread that takes
    # events polls the sockets itself.
    "GRPC_EXPERIMENTS": "-event_engine_client,-event_engine_listener",
    # Nothing of ours goes on in a fork of its process; for one that some library makes, such as to
    # start a command, the core would stop its threads and lose connections on the way.
    "GRPC_ENABLE_FORK_SUPPORT": "0",
}


def prepare_grpc() -> None:
    """Sets the environment of gRPC's core; takes effect only before its first use.

    A variable that the user has set stays.
    """
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
